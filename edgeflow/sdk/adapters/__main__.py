"""`python -m edgeflow.sdk.adapters`: one instance whose contract is not `sdk`.

Environment: EDGEFLOW_SOCKET as for the runtime, EDGEFLOW_ADAPTER (setting.py).
Exit status: that of the program when it ended by itself; else as the runtime's: 0 told to stop, 1 no agent, 75 killed, 78 the program cannot be used.
"""

import os
import sys

from edgeflow.errors import BadHandler
from edgeflow.sdk.adapters.adapter import Adapter
from edgeflow.sdk.adapters.http import Http
from edgeflow.sdk.adapters.mqtt import Mqtt, MqttInstance
from edgeflow.sdk.adapters.setting import VARIABLE, Setting
from edgeflow.sdk.adapters.stdio import Stdio
from edgeflow.sdk.context import FunctionInfo
from edgeflow.sdk.ending import EXIT_BAD_HANDLER, Stop
from edgeflow.sdk.log import Log
from edgeflow.sdk.runtime import Instance
from edgeflow.sdk.started import told


def main() -> int:
    """Entry point; returns the exit status."""
    if (given := told("EDGEFLOW_SOCKET", VARIABLE)) is None:
        return EXIT_BAD_HANDLER
    socket_path, text = given
    stop = Stop()
    stop.on_signals()

    def facts() -> tuple[FunctionInfo, Log]:
        return instance.info, instance.log

    setting = Setting.parse(text)
    adapter: Adapter
    if setting.contract == "mqtt":
        adapter = session = Mqtt(setting, stop, facts)
    else:
        adapter = Stdio(setting, stop, facts) if setting.contract == "stdio" else Http(setting, stop, facts)

    def exit_now(status: int) -> None:
        adapter.kill()
        os._exit(status)

    instance: Instance
    if setting.contract == "mqtt":
        instance = own_session = MqttInstance(socket_path, adapter.load, stop=stop, exit_now=exit_now)
        own_session.adapter = session
    else:
        instance = Instance(socket_path, adapter.load, stop=stop, exit_now=exit_now)
    try:
        status = instance.run()
    except BadHandler as error:
        print(f"edgeflow: {error.message}\nedgeflow: {error.hint}", file=sys.stderr, flush=True)
        instance.log.error("bad_handler", reason=error.message, hint=error.hint)
        status = EXIT_BAD_HANDLER
    finally:
        adapter.close()
    status = adapter.exit_status(status)
    if adapter.failed:
        instance.log.error("program_ended", reason=adapter.failed)
        print(f"edgeflow: {adapter.failed}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
