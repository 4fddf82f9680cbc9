"""numpy.memmap in each of its modes: numpy_work.py read|write, on the file `file` of 8 MiB.

`read` has threads and a fork server's children read it; `write` writes it by maps, with others open for reading.
"""
import concurrent.futures
import multiprocessing
import os
import sys

import numpy as np

WORDS = (8 << 20) // 8


def view():
    return np.memmap("file", dtype="<u8", mode="r", shape=(WORDS,))


def part_sum(part):
    """Of a sixteenth, by a map of its own."""
    bounds = slice(part * WORDS // 16, (part + 1) * WORDS // 16)
    return int(np.bitwise_xor.reduce(view()[bounds]))


def strided(start):
    return int(np.bitwise_xor.reduce(SHARED[start::509]))


def read():
    global SHARED
    truth = np.fromfile("file", dtype="<u8")[:WORDS]
    SHARED = view()
    assert np.array_equal(SHARED, truth)
    places = np.random.default_rng(5).integers(0, WORDS, 20_000)
    assert np.array_equal(SHARED[places], truth[places])
    assert np.array_equal(np.sort(SHARED), np.sort(truth))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        strides = list(threads.map(strided, range(64)))
    assert strides == [int(np.bitwise_xor.reduce(truth[start::509])) for start in range(64)]
    for method in ["fork", "forkserver"]:
        with multiprocessing.get_context(method).Pool(3) as pool:
            print(method, pool.map(part_sum, range(16)))
    shifted = np.memmap("file", dtype="u1", mode="r", offset=12345, shape=(3 << 20,))
    assert np.array_equal(shifted, truth.view("u1")[12345:12345 + (3 << 20)])
    copied = np.memmap("file", dtype="<u8", mode="c", shape=(WORDS,))
    copied[WORDS // 2] ^= 1
    assert copied[WORDS // 2] != truth[WORDS // 2] == SHARED[WORDS // 2]
    copied[::3000] += np.uint64(1)
    changed = truth.copy()
    changed[WORDS // 2] ^= 1
    changed[::3000] += np.uint64(1)
    assert np.array_equal(copied, changed)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(copied.__getitem__, [0, 3000, 3001, WORDS // 2]) == [changed[at] for at in (0, 3000, 3001, WORDS // 2)]
    copied[1::3000] -= np.uint64(1)
    changed[1::3000] -= np.uint64(1)
    assert np.array_equal(copied, changed) and np.array_equal(SHARED, truth)
    print(int(np.bitwise_xor.reduce(SHARED)), int(np.bitwise_xor.reduce(copied)))


def write():
    before = view()
    first = int(before[0])
    writable = np.memmap("file", dtype="<u8", mode="r+", shape=(WORDS,))
    writable[::512] += np.uint64(1)
    assert before[0] == np.uint64(first) + np.uint64(1) and np.array_equal(before, writable)
    writable.flush()
    assert np.array_equal(np.fromfile("file", dtype="<u8")[:WORDS], before)
    with open("file", "r+b") as file:  # beside the maps
        file.seek(1 << 20)
        file.write(b"by a file object")
    assert before.view("u1")[1 << 20:][:16].tobytes() == b"by a file object"
    after = view()
    assert np.array_equal(after, writable)
    made = np.memmap("made", dtype="f4", mode="w+", shape=(1 << 10, 1 << 10))
    made[:] = np.arange(1 << 20, dtype="f4").reshape(made.shape)
    made.flush()
    np.save("saved.npy", made)
    loaded = np.load("saved.npy", mmap_mode="r")
    assert np.array_equal(loaded, made)
    del made, writable
    os.truncate("made", 2 << 20)
    assert np.memmap("made", dtype="f4", mode="r")[-1] == (1 << 19) - 1
    print(int(np.bitwise_xor.reduce(after)), float(loaded.sum(dtype="f8")))


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]]()
