"""The module mmap as programs use it beside files and processes: python_maps.py, on the file `file` of 8 MiB and a bit."""
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

MIB = 1 << 20


def mapped():
    with open("file", "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def total(part):
    with mapped() as map:
        return sum(map[part * MIB:(part + 1) * MIB:61])


def process_ways():
    expected = [total(part) for part in range(8)]
    for method in ["fork", "forkserver", "spawn"]:
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(total, range(8), chunksize=1) == expected, method
    script = "import mmap; m = mmap.mmap(0, 0, access=mmap.ACCESS_READ); print(sum(m[::61 * 1024]))"
    for options in [{}, {"close_fds": False}, {"start_new_session": True}, {"preexec_fn": os.setsid}]:
        with open("file", "rb") as file:
            said = subprocess.run([sys.executable, "-c", script], stdin=file, capture_output=True, **options)
        assert said.returncode == 0 and int(said.stdout) == sum(mapped()[::61 * 1024]), said
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], os.environ)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def thread_ways():
    """Threads map, read and unmap while others start programs."""
    failed = []

    def work(number):
        try:
            for _ in range(10):
                total(number % 8)
                if number % 4 == 0:
                    subprocess.run(["true"], check=True)
        except BaseException as error:  # a thread's is nobody's
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


def sizes():
    """Resized (mremap(2)), cut under a map, and grown again."""
    data = open("file", "rb").read()
    reader = mapped()
    with open("file", "r+b") as file:
        writable = mmap.mmap(file.fileno(), 0)
        writable[5 * MIB:5 * MIB + 4] = b"here"
        assert reader[5 * MIB:5 * MIB + 4] == b"here"
        writable[5 * MIB:5 * MIB + 4] = data[5 * MIB:5 * MIB + 4]
        writable.resize(12 * MIB)
        assert os.path.getsize("file") == 12 * MIB and writable[:len(data)] == data and writable[-1] == 0
        writable[11 * MIB] = 7
        grown = mapped()
        assert grown[11 * MIB] == 7 and grown[:len(data)] == data
        writable.resize(3 * MIB)
        assert os.path.getsize("file") == 3 * MIB and reader[:3 * MIB] == data[:3 * MIB]
        writable.close()
    status = os.fork()
    if status == 0:
        grown[11 * MIB]  # past the end
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(status, 0)[1]) == -signal.SIGBUS
    with open("file", "r+b") as file:
        file.truncate(12 * MIB)
    assert grown[11 * MIB] == 0 and grown[:3 * MIB] == data[:3 * MIB] and not any(grown[3 * MIB:])
    again = mapped()
    assert again[:] == grown[:]
    try:
        again.resize(MIB)
        raise SystemExit("a map for reading was resized")
    except TypeError:
        pass
    os.rename("file", "other")
    os.unlink("other")
    assert again[:3 * MIB] == data[:3 * MIB]
    with open("file", "wb") as file:
        file.write(data)


def advice():
    with mapped() as map:
        before = map[:]
        for way in ["NORMAL", "RANDOM", "SEQUENTIAL", "WILLNEED", "DONTNEED", "HUGEPAGE", "DONTDUMP", "DODUMP", "MERGEABLE"]:
            try:
                map.madvise(getattr(mmap, "MADV_" + way))
            except (OSError, AttributeError) as error:
                print(way, getattr(error, "errno", None))
            assert map[::4096] == before[::4096], way
        assert map.find(before[6 * MIB:6 * MIB + 32]) == 6 * MIB and map[:] == before


if __name__ == "__main__":
    process_ways()
    thread_ways()
    sizes()
    advice()
    print("right")
