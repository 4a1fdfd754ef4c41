"""`roost bench` blames nobody for what it did itself, and hides nothing: the figures at the edges."""

import os
import pty
import re
import select
import signal
import subprocess
import threading
import time
from pathlib import Path

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


def test_a_group_without_members_loses_nothing():
    with FaultyBroker() as broker:
        words = ["--publishers", 1, "--subscribers", 0, "--shared", "g", "--seconds", 0.1, "--warmup", 0]
        bench("pub-sub", "-p", broker.port, *words).right()


def test_idle_connections_have_no_rate():
    with FaultyBroker() as broker:
        idle = bench("connect", "-p", broker.port, "-n", 10, "--seconds", 0).right().steps["idle"]
        assert (idle["per_second"], idle["generator_limited"]) == (0, False)
        words = ["-n", 10, "--seconds", 0.05]
        told = bench("connect", "-p", broker.port, *words, json_too=False).out
    [line] = [line for line in told.splitlines() if line.startswith("idle: ")]
    assert line.startswith("idle: 10 connections in 0.0")
    assert "per second" not in line


def test_a_connection_on_a_schedule_is_late_from_the_instant_when_it_was_due():
    """All are due at once and made one after the other: the last has waited for all the others."""
    with FaultyBroker() as broker:
        words = ["-n", 100, "--rate", 1e6, "--concurrency", 1, "--seconds", 0]
        run = bench("connect", "-p", broker.port, *words).right()
    step = run.steps["connect up to 100"]
    assert step["latency_us"]["max"] > 0.5 * step["seconds"] * 1e6


@pytest.mark.parametrize(
    ("words", "heard"),
    [(["--every"], "100000 that hear 100000"), (["--topics", 10], "100000 that hear 10000")],
)
def test_more_than_memory_holds_is_refused(words, heard):
    """Every pair of a subscriber and a publisher that it hears has its own account."""
    many = ["--publishers", 100_000, "--subscribers", 100_000]
    error = bench("pub-sub", *many, *words).impossible()
    assert error == f"roost: --subscribers: {heard} publishers each are more than 50000000 pairs\n"


def test_messages_that_nobody_must_keep_are_not_lost():
    """At QoS 0 a broker may keep nothing for who is away (section 3.1.2.4 of 3.1.1)."""
    with FaultyBroker() as broker:
        run = bench("offline", "-p", broker.port, "-q", 0, "-n", 10, "--messages", 30).right()
    assert run.report["notes"] == ["30 messages were sent at QoS 0: they may come or not"]
    assert run.steps["drain"]["count"] == 0


def test_the_threads_do_not_try_the_ports_of_each_other():
    with FaultyBroker() as broker:
        words = ["--source", "127.0.0.2", "--threads", 3, "--publishers", 20, "--subscribers", 20]
        bench("pub-sub", "-p", broker.port, *words, "--seconds", 0.1).right()
        assert broker.peers == ["127.0.0.2"] * 40


def test_everything_in_a_report_is_written_about():
    running = start(["--port", "0", "--no-admin"])
    document = (Path(__file__).parents[2] / "docs/formats/bench.md").read_text()
    names = set(re.findall(r"`(\w+)`", document.split("\n## The report")[1]))
    pid = ["-p", running.port, "--pid", running.process.pid]
    for words in (["pub-sub", *PAIR, "--rate", 100, "--seconds", 0.1], ["connect", "-n", 10, "--seconds", 0]):
        report = bench(*words, *pid).right().report
        told = {*report, *report["faults"]}
        for step in report["steps"]:
            told |= {*step, *step.get("latency_us", {}), *step.get("broker", {})}
        assert told <= names, told - names
    assert running.stop() == 0


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
