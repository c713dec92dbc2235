"""Worker processes that report, hang and die."""

import time

from experiments.bench import processes


def rows_of(script: str, deadline: float = 20.0):
    worker = processes.Worker(["-c", script], {}, deadline=time.time() + deadline)
    return list(worker), worker.reason, worker.code


def test_lines_come_as_they_are_printed_and_an_exit_leaves_no_reason():
    script = """print('{"a": 1}'); print('{}')"""
    assert rows_of(script) == ([{"a": 1}, {}], "", 0)


def test_one_that_falls_silent_is_stopped_and_what_came_before_is_kept():
    say = 'print(\'{"parameters": 1, "limit": 0.2}\', flush=True)'
    rows, reason, code = rows_of(f"{say}; import time; time.sleep(60)")
    assert rows == [{"parameters": 1, "limit": 0.2}] and code != 0
    assert reason == "stopped after 0 s"


def test_one_that_dies_says_its_last_words():
    assert rows_of("raise SystemExit('out of memory')") == ([], "exit 1: out of memory", 1)


def test_nothing_outlasts_the_deadline():
    begin = time.time()
    assert rows_of("import time; time.sleep(60)", deadline=0.3)[1] == "stopped after 0 s"
    assert time.time() - begin < 10


def test_what_libraries_print_does_not_mix_with_the_lines():
    script = (
        "from experiments.bench import processes as p; say = p.reporter(); print('hi'); say(a=2)"
    )
    assert rows_of(script) == ([{"a": 2}], "", 0)


def test_errors_are_told_in_one_line_of_a_table():
    assert processes.told(ValueError("a |\n b")) == "ValueError: a / b"
