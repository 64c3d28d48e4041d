"""The process that executes a notebook: started by this very interpreter, by itself or beside
others.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from subprocess import Popen

from studies.book.parallel import Company
from studies.engine.places import PACKAGE


def this_interpreter(folder: Path, company: Company | None = None) -> type:
    """A kernel manager that starts `sys.executable` in `folder`, whatever kernels a user has
    installed as python3.

    With `company` the kernel is killed as soon as that is told to stop.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.paths import jupyter_runtime_dir
    from traitlets import default

    class ThisInterpreter(AsyncKernelManager):
        @default("transport")
        def _transport(self):
            # local sockets, which nobody else on the machine can listen to, where their path is
            # short enough
            return "ipc" if os.name == "posix" and len(jupyter_runtime_dir()) < 45 else "tcp"

        @default("connection_file")
        def _connection_file(self):
            # names the sockets, too, which by default are called the same for all kernels
            place = Path(jupyter_runtime_dir())
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            return str(place / f"kernel-{uuid.uuid4()}.json")

        @property
        def kernel_spec(self):
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(
                argv=argv,
                display_name="Python 3",
                language="python",
                env=_kernel_environment(company),
            )

        async def start_kernel(self, **options):
            await super().start_kernel(**{"cwd": str(folder), **options})
            if company:
                company.stop.call(partial(_kill, self.provisioner.process))

    return ThisInterpreter


def _kill(process: Popen) -> None:
    """End a kernel and what it started; the thread that waits for it notices within a second."""
    if process.poll() is not None:
        return
    if not hasattr(os, "killpg"):
        return process.kill()
    with suppress(ProcessLookupError):  # it ended this very moment
        os.killpg(process.pid, signal.SIGKILL)  # Jupyter gives every kernel a group of its own


def _kernel_environment(company: Company | None) -> dict[str, str]:
    """This very fairlib first on the path; no bars of other libraries, which each leave a widget in
    a notebook.
    """
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    # kernels that each take all cores keep each other from working
    threads = (
        {"OMP_NUM_THREADS": str(company.threads)}
        if company and "OMP_NUM_THREADS" not in os.environ
        else {}
    )
    return {"PYTHONPATH": path, "TQDM_DISABLE": "1", **threads}
