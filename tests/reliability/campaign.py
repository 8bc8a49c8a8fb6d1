"""Damage good files in many ways, and read each one in a process of its own.

    python tests/reliability/campaign.py [--cases N] [--readers NAME ...]

This process imports everything. Each case is read by a child that is forked from it,
has 500 MB and a few seconds, and may end in the right answer or in one sentence: not by
a signal, with a traceback, in a hang or with more memory. A case has its seed from the
reader's name and its own number; --case runs one alone.
"""

import argparse
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]  # support/ is there
from readers import READERS  # noqa: E402

MEMORY = 500  # MB above the parent
SECONDS = 20  # of the processor; a case takes some milliseconds
BATCH = 25
# What stands in broken and malicious files: lengths, signs, ends of ranges.
NUMBERS = (0, 1, 2, 4, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)


# The same for files of text, in place of a number or a word.
WORDS = (b'', b'0', b'-1', b'1.5', b'nan', b'NaN', b'-inf', b'Infinity', b'1e999')
WORDS += (b'9' * 30, b'9' * 5000, b'null', b'"x"', b'[]', b'{}', b'true', b'wide')
WORDS += (
    b'[' * 2000,
    b'<a>',
    b'\xff',
    b'\0',
    b'\xc3\xa9',
    b'&b;',
    b'../..',
    b' ',
    b'\n',
)


def mutate_text(data: bytes, rng: np.random.Generator) -> bytes:
    for _ in range(rng.choice([1, 1, 1, 2])):
        numbers, others = rb'-?[0-9][0-9.]*', rb'[A-Za-z_]+|"[^"]*"'
        words = list(re.finditer(numbers if rng.random() < 0.7 else others, data))
        start, stop = words[rng.integers(len(words))].span() if words else (0, 0)
        data = data[:start] + WORDS[rng.integers(len(WORDS))] + data[stop:]
    return data


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        # Headers are short, and most there is to break stands in them.
        reach = len(data) if rng.random() < 0.5 else min(len(data), 300)
        at = int(rng.integers(0, max(reach, 1)))
        length = int(rng.integers(1, 65))
        how = rng.integers(0, 10)
        if not data:
            data += rng.bytes(length)
        elif how <= 2:
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif how == 3:
            data[at] = int(rng.integers(0, 256))
        elif how == 4:
            width = int(rng.choice([1, 2, 4, 8]))
            number = int(rng.choice(NUMBERS)) % 256**width
            order = 'little' if rng.random() < 0.7 else 'big'
            data[at : at + width] = number.to_bytes(width, order)
        elif how == 5:
            del data[at:]
        elif how == 6:
            del data[at : at + length]
        elif how == 7:
            data[at:at] = rng.bytes(length)
        elif how == 8:
            data[at : at + length] = bytes(length)
        else:
            other = int(rng.integers(0, len(data)))
            data[at:at] = data[other : other + length]
    return bytes(data)


def read_case(reader, number: int, samples: Path) -> tuple[str, str]:
    """What becomes of one case: a word and, of a failure, its story."""
    with damaged(reader, number, samples) as (victim, case):
        return read_file(reader, victim, case)


def compare_case(reader, number: int, samples: Path) -> tuple[str, str]:
    """Of a case that was read: whether the answer is that of another program."""
    with damaged(reader, number, samples) as (victim, case):
        expected = reader.reference(victim, case)
        complaint = reader.differ(reader.read(victim, case), expected)
    return ('wrong', complaint) if complaint else ('equal', '')


@contextmanager
def damaged(reader, number: int, samples: Path) -> Iterator[tuple[Path, Path]]:
    """One damaged file, and the copy of the samples that it lies in."""
    rng = np.random.default_rng([zlib.crc32(reader.name.encode()), number])
    with tempfile.TemporaryDirectory(dir=samples.parent) as folder:
        case = Path(folder, 'case')
        shutil.copytree(samples, case)
        files = sorted(p for p in case.rglob(reader.files) if p.is_file())
        victim = files[rng.integers(len(files))]
        change = mutate_text if reader.is_text and rng.random() < 0.7 else mutate
        victim.write_bytes(change(victim.read_bytes(), rng))
        yield victim, case


def read_file(reader, victim: Path, case: Path) -> tuple[str, str]:
    before = _memory('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # Linux counts VmHWM from here
    word, story = 'read', ''
    try:
        reader.read(victim, case)
    except reader.errors as error:
        word, story = 'refused', str(error)
        if _has_memory_error(error):
            word = 'memory'
        elif '\n' in story or len(story) > 1000 or not _names(story, victim, case):
            word = 'traceback'
            story = f'this is no sentence that names the file: {story!r}'
    except MemoryError:
        word, story = 'memory', traceback.format_exc()
    taken = _memory('VmHWM') - before
    if taken > MEMORY:
        word, story = 'memory', f'{taken:.0f} MB'
    return word, story


def _names(story: str, victim: Path, case: Path) -> bool:
    """A store is named by its folder."""
    return victim.name in story or case.name in story


def _has_memory_error(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _memory(what: str) -> float:
    """In MB."""
    status = Path('/proc/self/status').read_text()
    return int(re.search(rf'{what}:\s*(\d+) kB', status)[1]) / 1e3


def in_children(work: Callable, items: list) -> list[tuple[str, str]]:
    """What `work` returns for each item, or how the process ended in which it was.

    A child works on `BATCH` items, for a fork costs more than most of them; the item
    at which it ends is the last of its own.
    """
    answers = []
    while len(answers) < len(items):
        answers += _in_a_child(work, items[len(answers) :][:BATCH])
    return answers


def _in_a_child(work: Callable, items: list) -> list[tuple[str, str]]:
    ours, its = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _work_in_child(work, items, its)
    os.close(its)
    output = b''
    with open(ours, 'rb', buffering=0) as pipe:
        # One that waits for something takes no time of the processor.
        while select.select([pipe], [], [], 10 * SECONDS)[0]:
            read = pipe.read(2**16)
            if not read:
                break
            output += read
        else:
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    answers = [tuple(json.loads(line)) for line in output.splitlines()]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hangs = number in (signal.SIGPROF, signal.SIGKILL)
        name = signal.Signals(number).name
        answers.append(('hang' if hangs else 'signal', name))
    return answers


def _work_in_child(work: Callable, items: list, pipe: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # libpng and others print
        os.dup2(null, stream)
    bytes_at_most = int((_memory('VmSize') + MEMORY) * 10**6)
    resource.setrlimit(resource.RLIMIT_AS, (bytes_at_most, bytes_at_most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for item in items:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF ends the process
        try:
            word, story = work(item)
        except BaseException:
            word, story = 'traceback', traceback.format_exc()
        os.write(pipe, json.dumps((word, story[-3000:])).encode() + b'\n')
    os._exit(0)


def run_reader(reader, cases: list[int], folder: Path) -> dict:
    samples = folder / reader.name / 'samples'
    samples.mkdir(parents=True)
    reader.make(samples)
    whole = sorted(p for p in samples.rglob(reader.files) if p.is_file())
    for answer in in_children(lambda file: read_file(reader, file, samples), whole):
        assert answer == ('read', ''), answer
    answers = in_children(lambda n: read_case(reader, n, samples), cases)
    outcomes = dict(zip(cases, answers, strict=True))
    if reader.reference is not None:
        to_compare = [n for n in cases if outcomes[n][0] == 'read']
        compared = in_children(lambda n: compare_case(reader, n, samples), to_compare)
        for number, answer in zip(to_compare, compared, strict=True):
            # The other program has no opinion where it ends, in whatever way.
            if answer[0] in ('equal', 'wrong'):
                outcomes[number] = answer
    failures = [
        dict(case=number, word=word, story=story)
        for number, (word, story) in outcomes.items()
        if word not in ('read', 'refused', 'equal')
    ]
    counts = Counter(word for word, _ in outcomes.values())
    return dict(reader=reader.name, counts=counts, failures=failures)


def show(result: dict) -> None:
    counts = result['counts']
    words = ', '.join(f'{counts[word]} {word}' for word in sorted(counts))
    print(f'{result["reader"]}: {sum(counts.values())} cases, {words}', flush=True)
    for failure in result['failures']:
        command = f'--readers {result["reader"]} --case {failure["case"]}'
        print(f'  python {__file__} {command}\n{failure["word"]}: {failure["story"]}')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--cases', type=int, default=50, help='of each reader')
    parser.add_argument('--case', type=int, help='this one alone')
    parser.add_argument('--readers', nargs='+', default=[r.name for r in READERS])
    parser.add_argument('--out', type=Path, help='JSON file of the results')
    args = parser.parse_args()
    cases = list(range(args.cases)) if args.case is None else [args.case]
    results = []
    shared_memory = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shared_memory) as folder:
        for reader in READERS:
            if reader.name in args.readers:
                results.append(run_reader(reader, cases, Path(folder)))
                show(results[-1])
    if args.out:
        args.out.write_text(json.dumps(results))
    elif any(result['failures'] for result in results):
        sys.exit(1)


if __name__ == '__main__':
    main()
