#!/bin/sh
# Says what to try. It is started when Reprieve can do its work.
set -eu
cat <<'END'
Reprieve is ready. In another terminal, in the directory docker/ of the repository:

  docker compose exec reprieve reprieve trash dataset 00000000-0000-4000-8000-000000000002
      refused: an active model uses it
  docker compose exec reprieve reprieve trash dataset 00000000-0000-4000-8000-000000000001 --retention 30s --execute
  docker compose exec reprieve reprieve restore dataset 00000000-0000-4000-8000-000000000001
      or wait for half a minute, and then
  docker compose exec reprieve reprieve show dataset 00000000-0000-4000-8000-000000000001

Grafana http://127.0.0.1:3000   Prometheus http://127.0.0.1:9090   RabbitMQ http://127.0.0.1:15672
END
