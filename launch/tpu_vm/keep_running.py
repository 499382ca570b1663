# SPDX-License-Identifier: Apache-2.0
"""Runs a command until it is done: through crashes, and through hosts that are lost and come back.

    python keep_running.py [--retries N] [--pause-s S] [--steady-s S] [--status FILE] -- COMMAND ...

    the command ends with    then
    0                        it is done
    2                        the user's mistake: the same command would fail again, so it is not run
    75                       it saved, or another host is gone: it is run again
    anything else            a crash: it is run again

SIGTERM and SIGINT go to the command as SIGTERM; it may take its time to save, and is then not run
again. Ends with the status of the last try, 128 + N for signal N. Needs nothing but Python.
"""

import argparse
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

DONE, USER_ERROR = 0, 2


class Wrapper:
    """A command, its tries, and whether somebody asked for an end."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.child: subprocess.Popen[bytes] | None = None
        self.is_asked_to_stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        self.is_asked_to_stop.set()
        if self.child is not None:
            self.child.terminate()  # Does nothing to a process that has ended.

    def run(self) -> int:
        """Tries until there is nothing left to try. Returns the status of the last one."""
        tries = 0  # In a row.
        while True:
            self._note("running")
            started_s = time.monotonic()
            status = self._try()
            if status == DONE:
                self._note("done")
                return status
            if self.is_asked_to_stop.is_set():
                return self._stopped(status)
            if status == USER_ERROR:
                self._say("the command cannot run as it is (status 2), see its last line")
                self._note(f"failed {status}")
                return status
            tries = 1 if time.monotonic() - started_s >= self.args.steady_s else tries + 1
            if tries > self.args.retries:
                self._say(f"gave up after {tries} tries in a row, the last with status {status}")
                self._note(f"failed {status}")
                return status
            # Not for long: hosts that start again wait for each other within a time-out.
            pause_s = self.args.pause_s * min(2 ** (tries - 1), 6)
            total = self.args.retries + 1
            self._say(f"status {status}; try {tries + 1} of {total} in {pause_s:g} s")
            if self.is_asked_to_stop.wait(pause_s):
                return self._stopped(status)

    def _try(self) -> int:
        # A session of its own: Ctrl-C on a terminal reaches the command once, through us.
        self.child = subprocess.Popen(self.args.command, start_new_session=True)
        if self.is_asked_to_stop.is_set():  # Between the last look and the start.
            self.child.terminate()
        code = self.child.wait()
        return code if code >= 0 else 128 - code

    def _stopped(self, status: int) -> int:
        self._say(f"stopped, status {status}")
        self._note("stopped")
        return status

    def _note(self, word: str) -> None:
        if self.args.status is not None:
            self.args.status.write_text(word + "\n", encoding="utf-8")

    def _say(self, text: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        sys.stderr.write(f"{now} keep_running: {text}\n")
        sys.stderr.flush()


def parser() -> argparse.ArgumentParser:
    """The flags; the command comes after `--`."""
    flags = argparse.ArgumentParser(
        prog="keep_running.py",
        usage="%(prog)s [options] -- COMMAND [ARGUMENT ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    number = {"metavar": "N", "type": float}
    flags.add_argument("--retries", type=int, default=20, help="in a row (20)", metavar="N")
    flags.add_argument(
        "--pause-s",
        default=10.0,
        help="before the second try (10); doubled each time, to six times as long",
        **number,
    )
    flags.add_argument(
        "--steady-s",
        default=3600.0,
        help="a try that lasted so long begins a new row (3600); longer than hosts.init_timeout_s, "
        "after which hosts that wait in vain for another give up",
        **number,
    )
    flags.add_argument(
        "--status",
        type=Path,
        metavar="FILE",
        help="a word for whoever asks: running, done, stopped, failed STATUS",
    )
    return flags


def main(argv: list[str]) -> int:
    """Runs the command. Returns the exit status."""
    flags = parser()
    cut = argv.index("--") if "--" in argv else len(argv)
    args = flags.parse_args(argv[:cut])
    args.command = argv[cut + 1 :]
    if not args.command:
        flags.exit(2, "keep_running.py: give the command after --\n")
    if min(args.retries, args.pause_s, args.steady_s) < 0:
        flags.exit(2, "keep_running.py: --retries, --pause-s and --steady-s are not negative\n")
    return Wrapper(args).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
