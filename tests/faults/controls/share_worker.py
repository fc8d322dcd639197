"""A worker of an MQTT pool, as one writes it with `$share`: `python share_worker.py PORT NAME [CRASH_AT]`.

It acknowledges a message when its result is published. With CRASH_AT it is killed while it works on that many messages.
"""

import os
import signal
import sys
import time

import paho.mqtt.client as mqtt


def main(port: int, name: str, crash_at: int) -> None:
    """Serve for ever."""
    begun = 0

    def work(client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        nonlocal begun
        begun += 1
        time.sleep(0.003)
        if begun == crash_at:
            os.kill(os.getpid(), signal.SIGKILL)
        client.publish("out", message.payload, qos=1)

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
    client.on_connect = lambda *_: client.subscribe("$share/pool/in", qos=1)
    client.on_subscribe = lambda *_: client.publish("ready", name, qos=1)
    client.on_message = work
    client.connect("127.0.0.1", port)
    client.loop_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
