"""Tasks side by side: order, errors, threads."""

import threading

import pytest
import torch

from spex_mech.measuring.threads import threads
from spex_mech.walsh.joint.parallel import in_parallel, two_in_parallel


def test_results_are_in_the_order_of_the_tasks():
    with threads(3):
        assert in_parallel([lambda i=i: i * i for i in range(7)]) == [i * i for i in range(7)]
        assert two_in_parallel(lambda: 1, lambda: "two") == (1, "two")


@pytest.mark.parametrize(("count", "max_parallel", "together"), [(2, None, True), (1, None, False), (2, 1, False)])
def test_as_many_run_at_a_time_as_there_are_threads(count, max_parallel, together):
    """Two tasks that wait for each other can only end side by side."""
    barrier = threading.Barrier(2)

    def task():
        try:
            barrier.wait(timeout=20 if together else 0.2)
        except threading.BrokenBarrierError:
            return False
        return True

    with threads(count):
        assert in_parallel([task, task], max_parallel) == [together] * 2


def test_the_threads_are_divided_and_given_back():
    with threads(4):
        assert in_parallel([torch.get_num_threads] * 2) == [2, 2]
        assert torch.get_num_threads() == 4
        inner = in_parallel([lambda: in_parallel([threading.get_ident] * 2)] * 2)
        assert all(len(set(idents)) == 1 for idents in inner)  # within a task one after another


def test_the_first_error_is_raised_and_the_threads_are_given_back():
    def fail():
        raise ValueError("no")

    with threads(2):
        with pytest.raises(ValueError, match="no"):
            in_parallel([fail, lambda: 1, lambda: 2])
        assert torch.get_num_threads() == 2


def test_gradients_are_known_in_every_task():
    def slope():
        x = torch.tensor(3.0, requires_grad=True)
        (x * x).backward()
        return float(x.grad)

    with threads(2), torch.no_grad():
        assert in_parallel([slope] * 2) == [6.0, 6.0]
