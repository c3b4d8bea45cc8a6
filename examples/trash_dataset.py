#!/usr/bin/env python3
"""Asks Reprieve to trash a dataset (or restore it) and prints the answer.

    pip install pika
    AMQP_URL=amqp://user:password@host:5672/%2f python3 trash_dataset.py DATASET_ID [trash|restore] [REASON]

    AMQP_URL    the broker       [default: amqp://guest:guest@localhost:5672/%2f]
    NAMESPACE   Reprieve's       [default: reprieve]
    ACTOR       who asks         [default: the login name]

Exits 0 if it was done (or had been done before), 3 if it was refused, 1 if nothing answered.
"""

import getpass
import json
import os
import sys
import uuid

import pika

TIMEOUT = 30  # seconds, for the answer


def main() -> int:
    if not 2 <= len(sys.argv) <= 4:
        print(__doc__, file=sys.stderr)
        return 2
    request = {
        "v": 1,
        "op": sys.argv[2] if len(sys.argv) > 2 else "trash",
        "kind": "dataset",
        "id": sys.argv[1],
        "actor": os.environ.get("ACTOR") or getpass.getuser(),
        "reason": sys.argv[3] if len(sys.argv) > 3 else "asked for by trash_dataset.py",
    }
    url = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2f")
    reply = ask(url, os.environ.get("NAMESPACE", "reprieve"), request)
    if reply is None:
        # The request is stored and will be carried out; asking again with the same message_id is safe.
        print(f"no answer within {TIMEOUT} s", file=sys.stderr)
        return 1
    print(json.dumps(reply, indent=2))
    return 0 if reply["ok"] else 3


def ask(url: str, namespace: str, request: dict) -> dict | None:
    """Publishes the request and waits for its answer."""
    message_id = str(uuid.uuid4())  # a request that is published twice under one id is carried out once
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        channel.confirm_delivery()  # basic_publish raises unless the broker has stored the message
        replies = channel.queue_declare("", exclusive=True).method.queue
        channel.basic_publish(
            exchange=namespace,
            routing_key="requests",
            body=json.dumps(request).encode(),
            properties=pika.BasicProperties(
                content_type="application/json",
                delivery_mode=pika.DeliveryMode.Persistent,
                message_id=message_id,
                reply_to=replies,
                correlation_id=message_id,
            ),
            mandatory=True,  # ... and unless a queue took it
        )
        for method, properties, body in channel.consume(replies, auto_ack=True, inactivity_timeout=TIMEOUT):
            if method is None:
                return None
            if properties.correlation_id == message_id:
                return json.loads(body)
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
