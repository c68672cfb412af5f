# Starts Kafka in a container of the official image. docker-compose.yml and pipelines.testing run it with bash.
#
# A node that has run before first runs as a controller alone, until that has ended the session of the broker's last
# life: see `fence` in process.py, which does the same for the embedded broker. Set KAFKA_CONTROLLED_SHUTDOWN_ENABLE to
# "false" with it.
set -u
trap 'exit 143' TERM

fence() {
  local until=$((SECONDS + 30)) wanted='Fencing broker' line
  exec {said}< <(
    unset KAFKA_ADVERTISED_LISTENERS KAFKA_INTER_BROKER_LISTENER_NAME
    export KAFKA_PROCESS_ROLES=controller KAFKA_LISTENERS=CONTROLLER://:9093
    export KAFKA_BROKER_SESSION_TIMEOUT_MS=100 KAFKA_BROKER_HEARTBEAT_INTERVAL_MS=50
    export KAFKA_LOG4J_LOGGERS=org.apache.kafka.controller=DEBUG
    exec /etc/kafka/docker/run 2>&1
  )
  local controller=$!
  while [ "$SECONDS" -lt "$until" ] && read -r -t 10 -u "$said" line; do
    case $line in
      *'Fencing broker'*) wanted='Processed maybeFenceStaleBroker' ;;
      *"$wanted"*) break ;;
    esac
  done
  echo "the session of the broker's last life: $line"
  kill -TERM "$controller"
  while read -r -u "$said" line; do :; done  # It has ended when its output has.
  exec {said}<&-
}

if [ -d "$KAFKA_LOG_DIRS/__cluster_metadata-0" ]; then
  fence
fi
exec /etc/kafka/docker/run
