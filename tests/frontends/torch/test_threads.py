"""What a program does in another thread is not written down: it is opaque, and leaves no trace."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from bnfold.frontends.torch.code_names import may_start_threads
from tests.frontends.torch.support import assert_same, build, image, run

X = image(2, 3, 6, 6)


def in_thread(work: Callable[[], Any]) -> None:
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()


class Net(nn.Module):
    """conv, bn; something that `work` does elsewhere; a second bn that conv must not take in."""

    def __init__(self, work: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)
        self.work = work

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        in_thread(torch.no_grad()(lambda: self.work(self, y)))
        return torch.sigmoid(self.last(y))


def named(*functions: Any) -> list[Any]:
    return [pytest.param(function, id=function.__name__) for function in functions]


# ------------------------------------------------------------------- writes to values


def activates(net: Net, y: Tensor) -> Any:
    return y.tanh_()


def activates_by_function(net: Net, y: Tensor) -> Any:
    return functional.relu_(y)


def activates_by_module(net: Net, y: Tensor) -> Any:
    return nn.Hardtanh(-0.1, 0.2, inplace=True)(y)


def assigns(net: Net, y: Tensor) -> Any:
    y[:, 1:3, ::2] = 1.5


def writes_through_a_view(net: Net, y: Tensor) -> Any:
    return y.flatten(1)[:, ::2].sin_()


def fills_another(net: Net, y: Tensor) -> Any:
    return torch.cos(y, out=y)


def copies_over(net: Net, y: Tensor) -> Any:
    return y.copy_(y.abs())


def two_at_once(net: Net, y: Tensor) -> Any:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Tensor.tanh_, y.unbind()))


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    "work",
    named(
        activates,
        activates_by_function,
        activates_by_module,
        assigns,
        writes_through_a_view,
        fills_another,
        copies_over,
        two_at_once,
    ),
)
def test_a_write_in_another_thread_is_opaque(work: Any, verify: bool) -> None:
    model = build(Net(work))
    expected = run(model, X)
    folded, report = bnfold.fold(model, X, verify=verify)
    assert_same(expected, run(folded, X), 1e-9)
    assert [item.is_removed for item in report.items] == [True, False]


def reads(net: Net, y: Tensor) -> Any:
    return (y * 2).tanh_().mean()


def test_a_look_from_another_thread_changes_nothing() -> None:
    report = bnfold.fold(build(Net(reads)), X).report
    assert [item.is_removed for item in report.items] == [True, True]


def test_a_write_reaches_who_still_reads_the_convolution() -> None:
    class Reader(Net):
        def forward(self, x: Tensor) -> Tensor:
            z = self.conv(x)
            y = self.bn(z)
            in_thread(torch.no_grad()(lambda: y.tanh_()))
            return self.head(y) + self.head(z)

    model = build(Reader(reads))
    expected = run(model, X)
    assert_same(expected, run(bnfold.fold(model, X, verify=False).model, X), 1e-9)


# ------------------------------------------------------------------- writes to the model


def scales_gamma(net: Net, y: Tensor) -> Any:
    return net.bn.weight.mul_(1.25)


def scales_through_data(net: Net, y: Tensor) -> Any:
    return net.conv.weight.data.mul_(0.5)


def replaces_the_content(net: Net, y: Tensor) -> Any:
    return net.head.weight.copy_(net.head.weight + 1)


def writes_by_numpy(net: Net, y: Tensor) -> Any:
    net.head.bias.detach().numpy()[...] = 7.0


def moves_statistics(net: Net, y: Tensor) -> Any:
    return net.last.running_mean.add_(1.0)


def writes_to_a_part(net: Net, y: Tensor) -> Any:
    net.conv.bias[0] = 3.0


def exchanges_data(net: Net, y: Tensor) -> Any:
    net.last.bias.data = torch.ones_like(net.last.bias)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "work",
    named(
        scales_gamma,
        scales_through_data,
        replaces_the_content,
        writes_by_numpy,
        moves_statistics,
        writes_to_a_part,
        exchanges_data,
    ),
)
def test_the_original_is_what_it_was(work: Any, inplace: bool) -> None:
    model = build(Net(work))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bnfold.inspect(model, X)
    try:
        bnfold.fold(model, X, inplace=inplace)
    except bnfold.BnfoldError:
        inplace = False
    if not inplace:
        after = model.state_dict()
        assert all(torch.equal(after[name], content) for name, content in before.items())


# ------------------------------------------------------------------- threads that wait


def asks_for_a_value(net: Net, y: Tensor) -> Tensor:
    return y * 2 if y.sum().item() > 0 else y


def hands_out_its_weight(net: Net, y: Tensor) -> Tensor:
    return y + float(net.conv.weight.detach().numpy().max())


def asks_the_shape_of_a_choice(net: Net, y: Tensor) -> Tensor:
    return y + len(torch.nonzero(y))


class Waits(Net):
    """A thread waits for what the rest of forward makes; it would wait forever, were that left."""

    def forward(self, x: Tensor) -> Tensor:
        given: queue.Queue[Tensor] = queue.Queue()
        taken: queue.Queue[Tensor] = queue.Queue()
        work = torch.no_grad()(lambda: taken.put(torch.tanh(given.get())))
        threading.Thread(target=work, daemon=True).start()
        given.put(self.work(self, self.bn(self.conv(x))))
        return self.last(taken.get(timeout=30))


class WaitsInAPool(Net):
    def forward(self, x: Tensor) -> Tensor:
        given: queue.Queue[Tensor] = queue.Queue()
        pool = ThreadPoolExecutor(1)
        try:
            made = pool.submit(torch.no_grad()(lambda: torch.tanh(given.get(timeout=30))))
            given.put(self.work(self, self.bn(self.conv(x))))
            return self.last(made.result())
        finally:
            pool.shutdown(wait=False)


class WaitsElsewhere(Waits):
    """Neither its forward nor its class says what starts the thread."""

    def __init__(self, work: Any) -> None:
        super().__init__(work)
        self.helper = functools.partial(Helper.answer, Helper())

    def forward(self, x: Tensor) -> Tensor:
        given: queue.Queue[Tensor] = queue.Queue()
        taken = self.helper(given)
        given.put(self.work(self, self.bn(self.conv(x))))
        return self.last(taken.get(timeout=30))


class Worker(threading.Thread):
    def __init__(self, given: queue.Queue[Tensor]) -> None:
        super().__init__(daemon=True)
        self.given, self.taken = given, queue.Queue[Tensor]()

    def run(self) -> None:
        self.taken.put(torch.tanh(self.given.get().detach()))


class Helper:
    def answer(self, given: queue.Queue[Tensor]) -> queue.Queue[Tensor]:
        worker = Worker(given)
        worker.start()
        return worker.taken


@pytest.mark.parametrize("network", [Waits, WaitsInAPool, WaitsElsewhere])
@pytest.mark.parametrize(
    "work", named(asks_for_a_value, hands_out_its_weight, asks_the_shape_of_a_choice)
)
def test_no_thread_is_left_waiting(work: Any, network: type[Net]) -> None:
    before, start = set(threading.enumerate()), threading.Thread.start
    model = build(network(work))
    expected = run(model, X)
    folded, _ = bnfold.fold(model, X)
    assert_same(expected, run(folded, X), 1e-9)
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5)
        assert not thread.is_alive()
    assert threading.Thread.start is start


# What is taken before a thread is started is given back by it: no run may be broken off in between.
SLOT = threading.Semaphore(1)
POOL = ThreadPoolExecutor(1)


class TakesASlot(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        assert SLOT.acquire(timeout=30)
        worker = threading.Thread(target=SLOT.release)
        worker.start()
        worker.join()
        return self.last(y)


class QueuesInALastingPool(Net):
    def forward(self, x: Tensor) -> Tensor:
        given: queue.Queue[Tensor] = queue.Queue()
        made = POOL.submit(lambda: torch.tanh(given.get(timeout=30).detach()))
        given.put(self.bn(self.conv(x)))
        return self.last(made.result())


class StartsAWorkerOnce(Net):
    given: queue.Queue[Tensor] = queue.Queue()
    taken: queue.Queue[Tensor] = queue.Queue()
    worker: threading.Thread | None = None

    @classmethod
    def serve(cls) -> None:
        while True:
            cls.taken.put(torch.tanh(cls.given.get().detach()))

    def forward(self, x: Tensor) -> Tensor:
        if StartsAWorkerOnce.worker is None:
            StartsAWorkerOnce.worker = threading.Thread(target=self.serve, daemon=True)
            StartsAWorkerOnce.worker.start()
        self.given.put(self.bn(self.conv(x)))
        return self.last(self.taken.get(timeout=30))


@pytest.mark.parametrize("network", [TakesASlot, QueuesInALastingPool, StartsAWorkerOnce])
def test_what_outlives_a_run_is_as_a_whole_run_leaves_it(network: type[Net]) -> None:
    model = build(network(reads))
    folded, _ = bnfold.fold(model, X)
    assert_same(run(model, X), run(folded, X), 1e-9)


def test_code_without_threads_names_none() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    assert not may_start_threads(model.modules())
    assert may_start_threads([model, Net(reads)])  # by in_thread
