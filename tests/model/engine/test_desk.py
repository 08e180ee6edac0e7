"""Who of several replicas takes which request, and when they end."""

import threading

import pytest

from model.engine.desk import Desk


def desk_with(replicas, requests, lead=0.0):
    desk = Desk(replicas, lead)
    for request in range(requests):
        desk.put(request)
    return desk


def take_all(desk, replica, unfinished=0):
    taken = []
    while (request := desk.take(replica, unfinished + len(taken))) is not None:
        taken.append(request)
    return taken


def test_one_replica_takes_everything_in_order():
    assert take_all(desk_with(1, 5), 0) == [0, 1, 2, 3, 4]


def test_what_takes_longest_begins_early_and_what_is_short_does_not_wait_for_ever():
    desk = desk_with(1, 0, lead=4)
    for request, tokens in enumerate([10, 250, 10, 250, 250]):
        desk.put(request, tokens)
    assert take_all(desk, 0) == [1, 3, 4, 0, 2]
    desk.put("short", 10)
    for request in range(2000):
        desk.put(request, 250)
    assert take_all(desk, 0).index("short") < 4 * (250 - 10)


def test_replicas_take_equal_shares_of_a_few_requests():
    desk = desk_with(3, 8)
    assert take_all(desk, 0) == [0, 1, 2]
    assert take_all(desk, 1) == [3, 4, 5]
    assert take_all(desk, 2) == [6, 7]


def test_a_replica_with_less_under_way_takes_more():
    desk = desk_with(2, 0)
    assert desk.take(0, 10) is None
    for request in range(4):
        desk.put(request)
    assert desk.take(0, 10) is None
    assert take_all(desk, 1, 2) == [0, 1, 2, 3]


@pytest.mark.parametrize("loads", [(0, 9), (3, 3), (7, 1), (0, 0)])
def test_a_request_is_always_for_somebody(loads):
    desk = desk_with(2, 0)
    for replica, load in enumerate(loads):
        assert desk.take(replica, load) is None
    desk.put("request")
    assert "request" in [desk.take(replica, load) for replica, load in enumerate(loads)]


def test_each_replica_hears_once_of_a_complete_sample():
    desk = desk_with(2, 0)
    desk.stop("sample")
    for replica in range(2):
        assert desk.wait(replica)
        assert list(desk.stopped(replica)) == ["sample"]
        assert list(desk.stopped(replica)) == []


def test_a_replica_that_waits_is_woken():
    desk = desk_with(2, 0)
    woken = []
    waiting = threading.Thread(target=lambda: woken.append(desk.wait(1)))
    waiting.start()
    desk.put("request")
    waiting.join(timeout=60)
    assert woken == [True]


def test_once_closed_it_ends_when_nothing_is_left():
    desk = desk_with(2, 1)
    desk.close()
    assert desk.wait(0)
    assert not desk.abandoned
    assert desk.take(0, 0) == 0
    assert not desk.wait(0)


def test_abandoned_it_ends_at_once():
    desk = desk_with(2, 1)
    desk.close(abandon=True)
    assert desk.abandoned
    assert not desk.wait(0)
