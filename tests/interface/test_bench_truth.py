"""`roost bench` blames nobody for what it did itself, and hides nothing: the figures at the edges."""

import os
import pty
import select
import signal
import subprocess
import threading
import time

import pytest
from bench_run import ROOST, TIMEOUT_S, bench
from conftest import start
from faulty_broker import FaultyBroker

PAIR = ["--publishers", 1, "--subscribers", 1, "--warmup", 0]


def test_no_thread_leaves_while_its_clients_have_something_to_send():
    """The second thread has a publisher and nobody who waits; its large message is heard in the first."""
    with FaultyBroker() as broker:
        words = ["--publishers", 2, "--subscribers", 1, "--threads", 2, "--size", 20_000_000, "--window", 1]
        bench("pub-sub", "-p", broker.port, *words, "--seconds", 0.05, "--warmup", 0, "--patience", 20).right()


def test_the_first_error_of_several_threads_is_the_one_that_is_told():
    """The others stop because of it, which is no news."""
    with FaultyBroker("refuse-client", every=30) as broker:
        words = ["--subscribers", 60, "--threads", 8, "--concurrency", 1, "--patience", 20]
        error = bench("pub-sub", "-p", broker.port, *words).impossible()
    assert "CONNACK with code 0x05" in error


def test_a_schedule_that_was_not_kept_is_told():
    """A broker that takes 3 messages in 50 ms is asked for 400 a second: nothing is wrong with those that were sent."""
    with FaultyBroker(receive_maximum=3, ack_delay_s=0.05) as broker:
        words = [*PAIR, "--rate", 400, "--seconds", 0.6, "-q", 1, "-V", 5]
        report = bench("pub-sub", "-p", broker.port, *words).right().report
    [note] = report["notes"]
    found = int(note.removeprefix("the schedule was not kept: ").split()[0])
    assert 100 <= found <= 240 - broker.routed
    assert not report["steps"][0]["generator_limited"]


def test_a_schedule_that_was_kept_has_no_note():
    with FaultyBroker() as broker:
        for words in (["--rate", 200], ["--rate", 3], ["--rate", 300, "--threads", 2, "--publishers", 3]):
            run = bench("pub-sub", "-p", broker.port, *PAIR, "--seconds", 0.4, *words).right()
            assert run.report["notes"] == []


def test_a_schedule_beyond_all_means_ends_in_time():
    """Ten million a second: looking for what is due does not keep it from looking at the clock."""
    with FaultyBroker() as broker:
        begun = time.monotonic()
        run = bench("pub-sub", "-p", broker.port, *PAIR, "--rate", 1e7, "--seconds", 0.3, "--patience", 30).right()
    assert time.monotonic() - begun < 30
    assert run.steps["traffic"]["seconds"] < 3
    assert run.report["notes"][0].startswith("the schedule was not kept: ")


@pytest.mark.parametrize("words", [["--seconds", 0], ["--seconds", 0, "--threads", 2], ["--seconds", 0, "--rate", 100]])
def test_where_nothing_was_measured_there_are_no_figures(words):
    with FaultyBroker() as broker:
        run = bench("pub-sub", "-p", broker.port, *PAIR, *words).right()
    step = run.steps["traffic"]
    assert (step["count"], step["per_second"], step["generator_cores"]) == (0, 0, 0)
    assert "it ended before anything was measured" in run.report["notes"]


def test_a_connection_on_a_schedule_is_late_from_the_instant_when_it_was_due():
    """All are due at once and made one after the other: the last has waited for all the others."""
    with FaultyBroker() as broker:
        words = ["-n", 100, "--rate", 1e6, "--concurrency", 1, "--seconds", 0]
        run = bench("connect", "-p", broker.port, *words).right()
    step = run.steps["connect up to 100"]
    assert step["latency_us"]["max"] > 0.5 * step["seconds"] * 1e6


def test_a_process_that_is_not_there_is_found_before_the_broker_is_loaded():
    with FaultyBroker() as broker:
        assert "--pid 4194305" in bench("pub-sub", "-p", broker.port, "--pid", 4_194_305).impossible()
        assert broker.peers == []


@pytest.mark.parametrize("work", [["pub-sub", "-q", 1, *PAIR, "--seconds", 1.5], ["connect", "-n", 10, "--seconds", 2]])
def test_a_broker_that_dies_is_reported(work):
    """Its costs are not known any more; what was found is."""
    running = start(["--port", "0", "--no-admin"])

    def kill():
        running.process.kill()
        running.process.wait()

    killer = threading.Timer(1.8 if work[0] == "connect" else 0.7, kill)
    killer.start()
    run = bench(*work, "-p", running.port, "--pid", running.process.pid, "--patience", 0.5).faulty()
    assert run.faults["closed"] == (10 if work[0] == "connect" else 2)
    assert run.report["notes"][0].startswith("a connection ended: ")
    killer.join()
    assert running.stop() == -signal.SIGKILL


def test_an_error_does_not_stand_in_a_line_of_progress():
    with FaultyBroker("silent") as broker:
        ours, theirs = pty.openpty()
        words = ["pub-sub", "-p", broker.port, "--patience", 1]
        process = subprocess.Popen([*ROOST, *map(str, words)], stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        assert process.wait(TIMEOUT_S) == 1
        seen = b""
        while select.select([ours], [], [], 0.2)[0] and b"roost: " not in seen:
            seen += os.read(ours, 65536)
        os.close(ours)
        process.communicate()
    *progress, error = seen.decode().split("\r\x1b[K")
    assert "subscribers connect" in progress[-2]
    assert error.startswith("roost: 0 of ")
