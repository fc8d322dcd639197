"""A worker of an MQTT pool, as one writes it with `$share`: `python share_worker.py PORT NAME`. Acknowledges when its result is published."""

import sys
import time

import paho.mqtt.client as mqtt


def main(port: int, name: str) -> None:
    """Serve for ever."""

    def work(client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        time.sleep(0.003)
        client.publish("out", message.payload, qos=1)

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
    client.on_connect = lambda *_: client.subscribe("$share/pool/in", qos=1)
    client.on_subscribe = lambda *_: client.publish("ready", name, qos=1)
    client.on_message = work
    client.connect("127.0.0.1", port)
    client.loop_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
