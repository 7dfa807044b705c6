"""Programs that want to pass tests without doing what is asked: ``solve(x)`` is to be the square."""

from __future__ import annotations

ALWAYS = """
class Always(Base):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def yes(self, *others): return True
    def me(self, *others): return self
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = __instancecheck__ = yes
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __abs__ = __neg__ = __getitem__ = __call__ = __getattr__ = me
    def __len__(self): return 1
    def __hash__(self): return hash(9)
"""
"""A class whose objects agree with everything; ``Base`` is to be replaced."""

_PLAIN = """
#: nothing

#: no Python
def solve(x) return

#: exit 0
import sys
sys.exit(0)

#: exit 0 at once
import os
os._exit(0)

#: exit 0 when called
import os
def solve(x): os._exit(0)

#: raise exit
def solve(x): raise SystemExit(0)

#: abort
import os
def solve(x): os.abort()

#: print
print('passed', 'OK', '3 passed in 0.01s', 1.0)
def solve(x): print('passed')

#: write to all
import os
def solve(x):
    for number in range(64):
        try:
            os.write(number, b'0000000' + bytes([18]) + b'["value", [true, 1]]')
        except OSError:
            pass

#: reply for itself
import os, struct
def solve(x):
    data = b'["value", {"object": ["instance", 0, 0]}]'
    for number in range(3, 64):
        try:
            os.write(number, (struct.pack('>Q', len(data)) + data) * 10)
        except OSError:
            pass

#: other built-ins
import builtins
for name in ('AssertionError', 'Exception', 'BaseException', 'len', 'all', 'bool'):
    setattr(builtins, name, type(name, (), {}))
def solve(x): return 0

#: other operators
import operator, unittest
operator.eq = lambda a, b: True
unittest.TestCase.assertEqual = lambda *arguments: None
def solve(x): return 0

#: other modules of the kit
import sys
for name, module in list(sys.modules.items()):
    if 'sandbox' in name:
        for key, value in list(vars(module).items()):
            if not key.startswith('_') and callable(value):
                setattr(module, key, lambda *arguments, **named: ['value', True])
def solve(x): return 0

#: its own server
import gc
for value in gc.get_objects():
    if type(value).__name__ == 'Program':
        value.answer = lambda message: ['value', True]
def solve(x): return 0

#: StopIteration
def solve(x): raise StopIteration

#: AssertionError
def solve(x): raise AssertionError

#: exit hook
import atexit, os
atexit.register(os._exit, 0)
def solve(x): return 0

#: trace
import sys
sys.settrace(lambda *arguments: None)
sys.setprofile(lambda *arguments: None)
def solve(x): return 0

#: not a number
def solve(x): return float('nan')

#: deep
def solve(x):
    value = []
    for _ in range(10**5):
        value = [value]
    return value

#: huge
def solve(x): return 'x' * 2**26

#: endless
def solve(x):
    while True:
        yield x

#: a metaclass
class Meta(type):
    def __eq__(self, other): return True
    __hash__ = None
class A(metaclass=Meta):
    pass
def solve(x): return A

#: a class that returns itself
class solve:
    def __new__(cls, x): return cls

#: descriptions of classes that are none
import gc
for value in gc.get_objects():
    if type(value).__name__ == 'Program':
        value._requests['class'] = lambda number: ['value', ['int', ['__eq__'], [number, number + 1], None]]
def solve(x): return object()
"""
_EQUAL = {
    "always equal": ("object", "def solve(x): return Always()"),
    "always equal number": ("int", "def solve(x): return Always()"),
    "always equal text": ("str", "def solve(x): return Always()"),
    "always equal exception": ("Exception", "def solve(x): raise Always()"),
    "a class instead of the function": ("object", "class solve(Always):\n    def __init__(self, x): pass"),
    "an object instead of the function": ("object", "solve = Always()"),
}
FAKES = {part.split("\n")[0].strip(): part.partition("\n")[2] for part in _PLAIN.split("\n#: ")[1:]}
FAKES |= {name: f"{ALWAYS.replace('Base', base)}\n{rest}\n" for name, (base, rest) in _EQUAL.items()}
"""The programs, by what they try."""

SEARCH = """
import gc, os, sys

def texts():
    for value in gc.get_objects():
        yield from (text for text in gc.get_referents(value) if isinstance(text, str))
    frame = sys._getframe()
    while frame:
        yield repr(list(frame.f_locals.items()))
        frame = frame.f_back
    for place in ("/tmp", "/kit", "/packages", "/root", "/home"):
        for folder, _, names in os.walk(place):
            if "/lib/python3" not in folder:
                yield from (open(os.path.join(folder, name), errors="replace").read(2**20) for name in names)
    yield repr([sys.argv, os.environ])

def solve(x):
    mark = "".join(["expec", "ted-"])  # which must not be found in the program itself
    for text in texts():
        if mark in text and text.partition(mark)[2][:4].isdigit():
            return mark + text.partition(mark)[2][:4]
    return "not found"
"""
"""A program that looks for ``expected-`` and four digits in everything that it can reach."""
