"""The process in which one notebook runs: `python -m studies.book.execute SOURCE COPY PARAMETERS
LABEL`.

It ends, with its kernel and all that this started, as soon as the pipe to its stdin is closed: by
the process that started it, or by the system once that is dead.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import threading
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from fairlib.io import write_bytes

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def main(source: str, output: str, parameters: str, label: str) -> int:
    """Execute the notebook at `source` into `output` with the `parameters` (JSON).

    What cells print to stderr goes on in whole lines, each after `label`. Returns the exit status:
    0, or 1 when a cell failed or the kernel died, told in the `.error` file beside `output`.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    try:
        with TemporaryDirectory(prefix="fairlib-") as folder:
            papermill.execute_notebook(
                source,
                output,
                json.loads(parameters),
                kernel_name="python3",
                progress_bar=False,
                stderr_file=Lines(label),
                iopub_timeout=120,  # seconds; a busy machine is slow to pass outputs on
                shutdown_kernel="immediate",  # one that is asked to end reports that as an error
                config=Config(KernelManager=_sockets(folder)),
            )
        return 0
    except DeadKernelError:
        message = (
            f"{source}, cell {_last_started(output)}: the kernel died or was killed, most likely "
            f"because memory ran out ({psutil.virtual_memory().total / 2**30:.0f} GiB in all); "
            "close other programs, or run one notebook at a time (--jobs 1)"
        )
    except PapermillExecutionError as error:
        traceback = ANSI.sub("", "\n".join(error.traceback))
        message = f"{source}, cell {error.cell_index}: {error.ename}: {error.evalue}\n{traceback}"
    write_bytes(Path(output).with_suffix(".error"), message.encode())
    return 1


def _sockets(folder: str) -> dict[str, str]:
    """The kernel manager's settings for sockets in `folder`, which nobody else on the machine can
    listen to, where their path is short enough for the system.
    """
    file = Path(folder, "kernel.json")
    is_short = os.name == "posix" and len(str(file)) < 90
    return {"transport": "ipc", "connection_file": str(file)} if is_short else {}


def _end_with_parent() -> None:
    os.read(0, 1)
    ours = psutil.Process().children(recursive=True)
    for process in ours:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(ours, timeout=5)
    os._exit(1)


def _last_started(output: str) -> int:
    """The cell of the executed copy that ran last."""
    cells = json.loads(Path(output).read_text())["cells"]
    started = [cell["metadata"].get("papermill", {}).get("start_time") for cell in cells]
    return max(number for number, time in enumerate(started) if time)


class Lines(io.TextIOBase):
    """A stream that hands whole lines on to stderr, each after `label`, so that no notebook breaks
    into another's line.
    """

    def __init__(self, label: str):
        self.label, self.rest = label, ""

    def write(self, text: str) -> int:
        """Pass on the lines that `text` completes; keep what comes after the last of them."""
        *whole, self.rest = (self.rest + text).split("\n")
        sys.stderr.write("".join(f"{self.label}{line}\n" for line in whole))
        return len(text)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
