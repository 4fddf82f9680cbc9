"""SQLite with mmap_size under several processes: sqlite_work.py wal|delete|read.

Prints what must not depend on who came first, and fails if a reader ever sees half of a transaction.
"""
import hashlib
import multiprocessing
import os
import random
import signal
import sqlite3
import sys

WRITERS, ROUNDS, ROWS = 4, 10, 40
KILLED = 99  # the owner of rows that are written until somebody kills it


def connect(read_only=False):
    mode = "?mode=ro" if read_only else ""
    db = sqlite3.connect("file:data.db" + mode, uri=True, timeout=100, isolation_level=None)
    assert db.execute("PRAGMA mmap_size=268435456").fetchone() == (268435456,)
    return db


def check(db):
    """One transaction sees totals that fit its rows."""
    db.execute("BEGIN")
    counted = db.execute("SELECT count(*), ifnull(sum(length(value)), 0) FROM rows").fetchone()
    told = db.execute("SELECT sum(count), sum(bytes) FROM totals").fetchone()
    db.execute("COMMIT")
    assert counted == told, (counted, told)


def write_round(db, owner, number, values):
    db.execute("BEGIN IMMEDIATE")
    for row in range(ROWS):
        value = values.randbytes(values.randrange(200, 6000))
        key = owner * 1_000_000 + number * ROWS + row
        db.execute("INSERT INTO rows VALUES (?, ?, ?)", (key, owner, value))
    if number % 3 == 2:  # what was written first goes
        db.execute("DELETE FROM rows WHERE owner = ? AND id % 7 = ?", (owner, number % 7))
    db.execute(
        "UPDATE totals SET (count, bytes) = (SELECT count(*), ifnull(sum(length(value)), 0)"
        " FROM rows WHERE owner = ?) WHERE owner = ?",
        (owner, owner),
    )
    db.execute("COMMIT")


def write(owner):
    db, values = connect(), random.Random(owner)
    for number in range(ROUNDS):
        write_round(db, owner, number, values)
        check(db)
    db.close()


def write_until_killed(started):
    db, values = connect(), random.Random(KILLED)
    for number in range(1_000_000):
        write_round(db, KILLED, number, values)
        if number == 1:
            started.set()


def digest(db):
    hashed = hashlib.sha256()
    for row in db.execute("SELECT id, owner, value FROM rows WHERE owner != ? ORDER BY id", (KILLED,)):
        hashed.update(repr(row[:2]).encode() + row[2])
    return hashed.hexdigest()


def run(journal):
    db = connect()
    assert db.execute("PRAGMA journal_mode=" + journal).fetchone() == (journal,)
    db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, owner INTEGER, value BLOB)")
    db.execute("CREATE INDEX by_owner ON rows (owner)")
    db.execute("CREATE TABLE totals (owner INTEGER PRIMARY KEY, count INTEGER, bytes INTEGER)")
    for owner in [*range(WRITERS), KILLED]:
        db.execute("INSERT INTO totals VALUES (?, 0, 0)", (owner,))
    db.close()  # a child of fork must not have it
    started = multiprocessing.Event()
    victim = multiprocessing.Process(target=write_until_killed, args=(started,))
    workers = [multiprocessing.Process(target=write, args=(owner,)) for owner in range(WRITERS)]
    for process in [victim, *workers]:
        process.start()
    assert started.wait(100)
    os.kill(victim.pid, signal.SIGKILL)
    for process in [victim, *workers]:
        process.join()
    assert [worker.exitcode for worker in workers] == [0] * WRITERS, workers
    db = connect()
    check(db)
    db.execute("DELETE FROM rows WHERE owner = ?", (KILLED,))
    db.execute("UPDATE totals SET count = 0, bytes = 0 WHERE owner = ?", (KILLED,))
    check(db)
    print(digest(db), db.execute("PRAGMA integrity_check").fetchone())
    db.execute("VACUUM")  # the file becomes smaller while it is mapped
    check(db)
    print(digest(db), db.execute("SELECT owner, count, bytes FROM totals ORDER BY owner").fetchall())
    db.close()


def read(seed):
    db, places = connect(read_only=True), random.Random(seed)
    for _ in range(300):
        key = places.randrange(WRITERS) * 1_000_000 + places.randrange(ROUNDS * ROWS)
        db.execute("SELECT length(value) FROM rows WHERE id = ?", (key,)).fetchall()
    check(db)
    return digest(db)


def main():
    multiprocessing.set_start_method("fork")
    if sys.argv[1] == "read":
        with multiprocessing.Pool(3) as pool:
            print(pool.map(read, range(6), chunksize=1))
        db = connect(read_only=True)
        print(digest(db), db.execute("PRAGMA integrity_check").fetchone())
    else:
        run(sys.argv[1])


if __name__ == "__main__":
    main()
