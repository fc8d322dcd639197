# The stock clients in a pipe: what is heard on one channel is said on another.
set -- -h "$MQTT_HOST" -p "$MQTT_PORT" -u "$MQTT_USERNAME" -P "$MQTT_PASSWORD"
mosquitto_sub "$@" -q 1 -t foreign/plain | sed -u 's/^/heard /' | mosquitto_pub "$@" -q 1 -l -t foreign/out/mqtt
