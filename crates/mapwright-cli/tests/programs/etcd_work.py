"""etcd, which maps its database by itself and not through the C library: etcd_work.py PROGRAM.

Puts and deletes keys, ends it by SIGKILL, looks whether all is there, defragments it (which makes the file anew), and prints what it holds.
"""
import base64
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

PUTS = 400


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


CLIENTS, PEERS = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"


def call(what, timeout=60, **arguments):
    for name in ["key", "value", "range_end"]:
        if name in arguments:
            arguments[name] = base64.b64encode(arguments[name]).decode()
    request = urllib.request.Request(CLIENTS + what, json.dumps(arguments).encode())
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def start():
    arguments = ["--name", "one", "--data-dir", "data", "--snapshot-count", "100", "--log-level", "error"]
    arguments += ["--listen-client-urls", CLIENTS, "--advertise-client-urls", CLIENTS]
    arguments += ["--listen-peer-urls", PEERS, "--initial-advertise-peer-urls", PEERS]
    arguments += ["--initial-cluster", "one=" + PEERS]
    etcd = subprocess.Popen([sys.argv[1], *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for _ in range(600):
        try:
            call("/v3/kv/range", timeout=5, key=b"none")
            return etcd
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if etcd.poll() is not None:
                break
            time.sleep(0.05)
    etcd.kill()
    sys.exit(f"etcd does not answer: {etcd.communicate()[1].decode()}")


def holds():
    found = call("/v3/kv/range", key=b"k", range_end=b"l", sort_target="KEY", sort_order="ASCEND")
    pairs = found.get("kvs", [])
    return [(base64.b64decode(pair["key"]), base64.b64decode(pair["value"])) for pair in pairs]


def main():
    expected = {}
    etcd = start()
    try:
        for number in range(PUTS):
            key, value = b"k%04d" % (number * 7 % 300), b"%d " % number * (100 + number)
            call("/v3/kv/put", key=key, value=value)
            expected[key] = value
        for number in range(0, 300, 5):
            call("/v3/kv/deleterange", key=b"k%04d" % number)
            expected.pop(b"k%04d" % number, None)
        etcd.kill()
        etcd.wait()
        etcd = start()
        assert holds() == sorted(expected.items()), "after SIGKILL"
        call("/v3/maintenance/defragment")
        assert holds() == sorted(expected.items()), "after defragmenting"
        call("/v3/kv/put", key=b"k", value=b"last")
        print(len(expected), [pair for pair in holds()][0], sum(len(value) for _, value in holds()))
        etcd.terminate()
        print(etcd.wait(timeout=60))
    finally:
        etcd.kill()


if __name__ == "__main__":
    main()
