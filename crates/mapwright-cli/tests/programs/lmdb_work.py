"""The lmdb package under several processes: lmdb_work.py plain|writemap.

Prints what must not depend on who came first, and fails if a reader ever sees half of a transaction.
"""
import hashlib
import multiprocessing
import os
import random
import signal
import struct
import sys

import lmdb

WRITERS, ROUNDS, KEYS, SIZE = 4, 40, 1500, 64 << 20
SUM = b"sum"


def open_env():
    return lmdb.open("data", map_size=SIZE, writemap=sys.argv[1] == "writemap", max_readers=64)


def number(value):
    return struct.unpack_from("<Q", value)[0]


def value_of(key, count):
    """The count, and as many bytes as make pages overflow now and then, which follow from it."""
    length = 300 + (key * 7919 + count * 104729) % 5000
    return struct.pack("<Q", count) + hashlib.shake_128(b"%d %d" % (key, count)).digest(length)


def add(env, keys):
    """Counts each key once more, and the sum of all, in one transaction."""
    with env.begin(write=True) as txn:
        for key in keys:
            name = b"%08d" % key
            txn.put(name, value_of(key, number(txn.get(name)) + 1))
        txn.put(SUM, struct.pack("<Q", number(txn.get(SUM)) + len(keys)))


def check(env):
    """One transaction sees the sum of its own counts, and values that are whole."""
    with env.begin(buffers=True) as txn:
        total = 0
        for name, value in txn.cursor():
            if bytes(name) != SUM:
                count = number(value)
                assert value == value_of(int(bytes(name)), count), bytes(name)
                total += count
        assert total == number(txn.get(SUM)), total
        return total


def write(seed):
    env, places = open_env(), random.Random(seed)
    for _ in range(ROUNDS):
        add(env, places.sample(range(KEYS - 1), 20))
    env.close()


def write_until_killed(started):
    """Counts one key of its own."""
    env = open_env()
    for done in range(1_000_000_000):
        add(env, [KEYS - 1])
        if done == 3:
            started.set()


def read(_):
    env = open_env()
    for _ in range(4):
        check(env)
    env.close()


def main():
    context = multiprocessing.get_context("spawn")  # programs of their own, as LMDB wants them
    env = open_env()
    with env.begin(write=True) as txn:
        for key in range(KEYS):
            txn.put(b"%08d" % key, value_of(key, 0))
        txn.put(SUM, struct.pack("<Q", 0))
    env.close()
    started = context.Event()
    victim = context.Process(target=write_until_killed, args=(started,))
    workers = [context.Process(target=write, args=(seed,)) for seed in range(WRITERS)]
    workers += [context.Process(target=read, args=(seed,)) for seed in range(2)]
    for process in [victim, *workers]:
        process.start()
    assert started.wait(100)
    os.kill(victim.pid, signal.SIGKILL)
    for process in [victim, *workers]:
        process.join()
    assert [worker.exitcode for worker in workers] == [0] * len(workers), workers
    env = open_env()
    env.reader_check()
    total, hashed = check(env), hashlib.sha256()
    with env.begin(write=True) as txn:
        of_killed = number(txn.get(b"%08d" % (KEYS - 1)))
        assert txn.delete(b"%08d" % (KEYS - 1)) and txn.put(SUM, struct.pack("<Q", total - of_killed))
    assert of_killed >= 4 and check(env) == total - of_killed == WRITERS * ROUNDS * 20
    with env.begin() as txn:
        for name, value in txn.cursor():
            hashed.update(name + value)
    os.mkdir("copy.mdb")
    env.copy("copy.mdb", compact=True)
    print(hashed.hexdigest(), env.stat()["entries"])
    env.close()
    copy = lmdb.open("copy.mdb", readonly=True, lock=False)
    assert check(copy) == total - of_killed
    print("right")


if __name__ == "__main__":
    main()
