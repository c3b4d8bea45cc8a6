"""What boto3 and minio-py do about a prefix, as their documentation shows it.

usage: python_peers.py boto3|minio ENDPOINT BUCKET PREFIX; prints what it took from the first request on, so that
starting Python is not counted.
"""
import json
import os
import resource
import sys
import time

ACCESS, SECRET = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]


def with_boto3(endpoint):
    import boto3
    from botocore.config import Config

    config = Config(s3={"addressing_style": "path"})
    s3 = boto3.resource("s3", endpoint_url=endpoint, region_name="us-east-1", config=config)

    def delete(bucket, prefix):
        for answer in s3.Bucket(bucket).objects.filter(Prefix=prefix).delete():
            yield from answer.get("Errors", ())

    return delete


def with_minio(endpoint):
    from minio import Minio
    from minio.deleteobjects import DeleteObject

    client = Minio(endpoint.removeprefix("http://"), ACCESS, SECRET, secure=False, region="us-east-1")

    def delete(bucket, prefix):
        objects = client.list_objects(bucket, prefix, recursive=True)
        return client.remove_objects(bucket, (DeleteObject(found.object_name) for found in objects))

    return delete


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


which, endpoint, bucket, prefix = sys.argv[1:]
delete = {"boto3": with_boto3, "minio": with_minio}[which](endpoint)
began, cpu_before = time.monotonic(), cpu()
errors = sum(1 for _ in delete(bucket, prefix))
print(json.dumps({"seconds": time.monotonic() - began, "cpu": cpu() - cpu_before, "errors": errors}))
sys.exit(1 if errors else 0)
