"""Threads, and other ways to run code somewhere else."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from tests.property.programs.block import Room, habit

elsewhere = habit("threads")


def in_thread(function):
    """Its result, computed in a thread of its own."""
    found = []
    worker = threading.Thread(target=lambda: found.append(function()))
    worker.start()
    worker.join()
    return found[0]


@elsewhere
def branch(room: Room):
    def run(self, x):
        other = in_thread(lambda: torch.sigmoid(self.conv(x)))
        return self.bn(self.conv(x)) + other

    return room.block(run, "conv", "bn")


@elsewhere
def whole_body(room: Room):
    return room.block(lambda self, x: in_thread(lambda: self.body(x)), "body")


@elsewhere
def norm_in_a_thread(room: Room):
    def run(self, x):
        y = self.conv(x)
        return torch.relu(in_thread(lambda: self.bn(y)))

    return room.block(run, "conv", "bn")


@elsewhere
def activation_in_a_thread(room: Room):
    def run(self, x):
        y = self.bn(x)
        return self.conv(in_thread(lambda: torch.sigmoid(y)))

    return room.block(run, "conv", "bn")


@elsewhere
def writes_in_a_thread(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        in_thread(lambda: y.tanh_())
        return y

    return room.block(run, "conv", "bn")


@elsewhere
def buffer_in_a_thread(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x) * self.gain)
        in_thread(lambda: self.gain.add_(0.5))
        return y

    return room.block(run, "conv", "bn", gain=room.tensor(1.0))


@elsewhere
def pool_of_two(room: Room):
    def run(self, x):
        with ThreadPoolExecutor(2) as pool:
            one, two = pool.map(lambda layer: layer(x), (self.body, self.conv))
        return self.bn(one + two)

    return room.block(run, "body", "conv", "bn")


@elsewhere
def pool_over_the_batch(room: Room):
    def run(self, x):
        with ThreadPoolExecutor(1) as pool:
            return self.bn(torch.cat(list(pool.map(self.body, x.split(1)))))

    return room.block(run, "body", "bn")


@elsewhere
def with_a_queue(room: Room):
    def run(self, x):
        given, taken = queue.Queue(), queue.Queue()
        worker = threading.Thread(target=lambda: taken.put(torch.tanh(given.get())))
        worker.start()
        given.put(self.bn(self.conv(x)))
        worker.join()
        return taken.get()

    return room.block(run, "conv", "bn")


@elsewhere
def local_to_the_thread(room: Room):
    local = threading.local()

    def run(self, x):
        local.value = self.bn(self.conv(x))
        seen = in_thread(lambda: hasattr(local, "value"))
        return torch.relu(local.value) if not seen else local.value

    return room.block(run, "conv", "bn")


@elsewhere
def coroutine(room: Room):
    def run(self, x):
        async def later(y):
            await asyncio.sleep(0)
            return torch.sigmoid(self.bn(y))

        return asyncio.run(later(self.conv(x)))

    return room.block(run, "conv", "bn")


@elsewhere
def generator(room: Room):
    def run(self, x):
        def steps(y):
            for layer in (self.conv, self.bn, torch.relu):
                y = layer(y)
                yield y

        return list(steps(x))[-1]

    return room.block(run, "conv", "bn")


@elsewhere
def forked(room: Room):
    def run(self, x):
        future = torch.jit.fork(self.body, x)
        return self.bn(torch.jit.wait(future))

    return room.block(run, "body", "bn")


@elsewhere
def future(room: Room):
    def run(self, x):
        promise = torch.futures.Future()
        promise.set_result(self.bn(self.conv(x)))
        return promise.then(lambda done: torch.sigmoid(done.value())).wait()

    return room.block(run, "conv", "bn")


@elsewhere
def copied_context(room: Room):
    def run(self, x):
        return contextvars.copy_context().run(lambda: torch.relu(self.bn(self.conv(x))))

    return room.block(run, "conv", "bn")


@elsewhere
def data_parallel(room: Room):
    return room.block(lambda self, x: self.wide(x), wide=nn.DataParallel(room.body()))


@elsewhere
def reads_a_number(room: Room):
    def run(self, x):
        factor = in_thread(lambda: float(self.conv.weight.abs().max()))
        return self.bn(self.conv(x)) * factor

    return room.block(run, "conv", "bn")


@elsewhere
def value_number_in_a_thread(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        largest = in_thread(lambda: y.abs().max().item())
        return y / largest

    return room.block(run, "conv", "bn")


@elsewhere
def timer(room: Room):
    def run(self, x):
        found = []
        worker = threading.Timer(0, lambda: found.append(torch.relu(self.bn(x))))
        worker.start()
        worker.join()
        return self.conv(found[0])

    return room.block(run, "conv", "bn")
