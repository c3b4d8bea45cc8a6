#!/bin/sh
# Makes the bucket, and puts the objects of the sample datasets (platform.sql) into it, five for each sample.
# Once: a mark in the bucket says that it is done, so that a later start does not bring back what was purged meanwhile.
# Killed halfway it begins anew, over what is there.
set -eu
: "${S3_ENDPOINT:?}" "${S3_ACCESS_KEY:?}" "${S3_SECRET_KEY:?}" "${S3_BUCKET:?}"

umask 077
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# in a file, so that the key is in no list of processes
cat >"$work/access" <<END
user = "$S3_ACCESS_KEY:$S3_SECRET_KEY"
aws-sigv4 = "aws:amz:us-east-1:s3"
END
bucket=$S3_ENDPOINT/$S3_BUCKET
ask() { curl --config "$work/access" --silent --show-error --retry 10 --retry-connrefused --max-time 120 "$@"; }
request() { ask --fail --output /dev/null "$@"; }

found=$(ask --write-out '%{http_code}' "$bucket?list-type=2&prefix=demo%2Fseeded")
case $found in
  *'<Key>demo/seeded</Key>'*200) echo 'seed: done before'; exit 0 ;;
  *200) ;;
  *NoSuchBucket*404) request --request PUT "$bucket" ;;
  *) echo "seed: the bucket cannot be listed: $found" >&2; exit 1 ;;
esac

head -c 2048 /dev/zero >"$work/object"
put() { # ID SAMPLES
  sample=0
  while [ "$sample" -lt "$2" ]; do
    for receiver in 0 1 2 3 4; do
      printf 'upload-file = "%s"\nurl = "%s/synthetic/%s/%s/RX_00%s.npy"\noutput = "/dev/null"\n' \
        "$work/object" "$bucket" "$1" "$sample" "$receiver"
    done
    sample=$((sample + 1))
  done >"$work/uploads"
  request --parallel --parallel-max 16 --config "$work/uploads"
  echo "seed: $(($2 * 5)) objects below synthetic/$1/"
}
put 00000000-0000-4000-8000-000000000001 400
put 00000000-0000-4000-8000-000000000002 100
put 00000000-0000-4000-8000-000000000003 60
request --upload-file "$work/object" "$bucket/demo/seeded"
