#!/bin/sh
# Waits until Reprieve can do its work, and says what to try.
set -eu
curl --silent --show-error --fail --output /dev/null --max-time 5 \
  --retry 60 --retry-delay 2 --retry-all-errors "${READY_URL:?}"
cat <<'END'
Reprieve is ready. In another terminal, beside docker/compose.yaml:

  docker compose exec reprieve reprieve trash dataset 00000000-0000-4000-8000-000000000002
      refused: an active model uses it
  docker compose exec reprieve reprieve trash dataset 00000000-0000-4000-8000-000000000001 --retention 30s --execute
  docker compose exec reprieve reprieve restore dataset 00000000-0000-4000-8000-000000000001
      or wait for half a minute, and then
  docker compose exec reprieve reprieve show dataset 00000000-0000-4000-8000-000000000001

Grafana http://127.0.0.1:3000   Prometheus http://127.0.0.1:9090   RabbitMQ http://127.0.0.1:15672
END
