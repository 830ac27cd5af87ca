"""Jinja for templates that nobody vouches for: no attribute escapes, and a budget for time and memory.

Jinja's own sandbox stops a template from reaching Python. It does not stop `'a' * 10**9`, four nested loops, or a filter that
pads to a gigabyte. So here everything that makes or walks something is paid for before it is done, the tree is rewritten where
Jinja has no hook, and only filters, methods and functions of known cost can be called.
"""

import functools
import itertools
import time
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, ValuesView
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Joiner, Namespace, pass_context
from jinja2.visitor import NodeTransformer

BUDGET = 32_000_000  # one for each character; about 150 MB and 2 s at the worst
SECONDS = 5.0  # for what the budget underrates
_STEP = 32  # a round of a loop, a call
_ELEMENT = 16  # of a list or dict
_MAX_BITS = 1024  # of whole numbers: what is printed, stored or counted is smaller


class Budget:
    """What a rendering may still cost. SecurityError when it is used up."""

    def __init__(self) -> None:
        self._left = BUDGET
        self._end = time.perf_counter() + SECONDS

    def spend(self, amount: int) -> None:
        """Pay, before doing it, for something that costs so many characters."""
        self._left -= amount
        if self._left < 0 or time.perf_counter() > self._end:
            raise SecurityError("it takes too much time or memory")

    def weigh(self, value: object) -> None:
        """Pay for walking a value with all that it holds: comparing, sorting or printing it."""
        stack = [value]
        while stack:
            one = stack.pop()
            if isinstance(one, str):
                self.spend(len(one) + 1)
            elif isinstance(one, dict):
                self.spend(_ELEMENT * (2 * len(one) + 1))
                stack += [*one.keys(), *one.values()]
            elif isinstance(one, (list, tuple)):
                self.spend(_ELEMENT * (len(one) + 1))
                stack += one
            elif isinstance(one, (KeysView, ValuesView, ItemsView)):
                stack.append(list(one))
            else:
                self.spend(1)

    def hold(self, value: object) -> None:
        """Pay for a new value whose parts are there already."""
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.spend(_ELEMENT * (len(value) + 1))

    def text(self, value: object) -> str:
        """A value as text; things that are no data (functions, namespaces, loops) are not printed."""
        if isinstance(value, str):
            self.spend(len(value))
            return value
        if value is None or isinstance(value, (bool, int, float, Undefined)):
            return str(value)
        if isinstance(value, (list, tuple, dict)):
            self.weigh(value)
            for one in _walk(value):
                if not isinstance(one, (str, bool, int, float, list, tuple, dict, type(None))):
                    raise SecurityError(f"a {type(one).__name__} cannot be printed")
            return str(value)
        raise SecurityError(f"a {type(value).__name__} cannot be printed")

    def listed(self, values: Iterable[Any]) -> list[Any]:
        """`list(values)`, of which nobody knows the length before."""
        found = []
        for value in values:
            self.spend(_ELEMENT)
            found.append(value)
        return found

    def join(self, values: Iterable[object], separator: str = "") -> str:
        """`separator.join(values)`."""
        texts = []
        for value in values:
            self.spend(_ELEMENT + len(separator))
            texts.append(self.text(value))
        self.spend(sum(map(len, texts)))
        return separator.join(texts)

    def replace(self, text: str, old: str, new: str, count: int = -1) -> str:
        """`text.replace(old, new, count)`."""
        self.spend(len(text))
        found = text.count(old)
        self.spend(len(new) * (found if count < 0 else min(found, count)))
        return text.replace(old, new, count)


def _walk(value: object) -> Iterable[object]:
    # Called on weighed values only: what is shared is walked as often as it is printed.
    stack = [value]
    while stack:
        one = stack.pop()
        yield one
        if isinstance(one, dict):
            stack += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple)):
            stack += one


class SandboxEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one template. Not for several threads at once: `budget` is that of the present rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, filters: Mapping[str, Callable[..., Any]], functions: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(
            trim_blocks=True,  # this and the next as Hugging Face's templates are written for
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            optimized=False,  # else constants are computed while compiling, past the budget
            finalize=_finalize,
        )
        self.budget = Budget()
        self.filters = dict(filters)
        tests: dict[str, Any] = self.tests
        self.tests = {name: self._paid_test(test) for name, test in tests.items()}
        self.globals = {"range": safe_range, "namespace": Namespace, "dict": dict, "joiner": Joiner, **functions}

    def compile_metered(self, source: str) -> jinja2.Template:
        """The template, rewritten so that it pays for what it does. Raises whatever jinja2 and compile() raise."""
        self.budget = Budget()
        tree: nodes.Template = _Meter().visit(self.parse(source))
        return jinja2.Template.from_code(self, self.compile(tree), self.globals)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Pay for the result of an operator before it is computed."""
        if operator == "%" and isinstance(left, str):
            raise SecurityError("text cannot be formatted with %")
        sizes = [len(side) for side in (left, right) if isinstance(side, (str, list, tuple))]
        if operator == "+":
            self.budget.spend(sum(sizes) * (1 if isinstance(left, str) else _ELEMENT))
        elif sizes:
            times = max((side for side in (left, right) if isinstance(side, int)), default=0)
            self.budget.spend(sizes[0] * max(times, 0) * _ELEMENT)
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MAX_BITS:
                raise SecurityError(f"a number is larger than 2**{_MAX_BITS}")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *given: Any, **named: Any) -> Any:
        """Pay for a call; only functions of known cost can be called."""
        self.budget.spend(_STEP)
        owner = getattr(function, "__self__", None)
        if owner is self:  # what _Meter wrote into the template
            return function(*given)
        if type(owner) in _METHODS:
            named = {name: value for name, value in named.items() if name not in ("_loop_vars", "_block_vars")}  # Jinja's own
            return self._call_method(owner, function.__name__, given, named)
        allowed = isinstance(function, (Macro, BlockReference, LoopContext, Joiner)) or isinstance(owner, LoopContext)
        if not allowed and not any(function is known for known in self.globals.values()):
            raise SecurityError(f"{getattr(function, '__name__', type(function).__name__)!r} cannot be called")
        self.budget.spend(3 * _STEP)  # a macro costs more than a method
        self.budget.weigh([*given, *named.values()])
        result = super().call(context, function, *given, **named)
        self.budget.hold(result)
        return result

    def _call_method(self, owner: Any, name: str, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if name not in _METHODS[type(owner)]:
            raise SecurityError(f"{type(owner).__name__}.{name} cannot be called")
        if isinstance(owner, str):
            if name == "replace":
                return self.budget.replace(owner, *given, **named)
            if name == "join":
                (values,) = given
                return self.budget.join(values, owner)
            self._pay_for_search(owner, name, given[0] if given else named.get("sep"))
        elif name in ("index", "count"):
            self.budget.weigh([owner, *given])
        result = getattr(owner, name)(*given, **named)
        self.budget.hold(result)
        return result

    def _pay_for_search(self, text: str, name: str, wanted: object) -> None:
        self.budget.spend(len(text))
        if "split" in name:  # into at most so many parts
            parts = text.count(wanted) if isinstance(wanted, str) and wanted else len(text) // 2
            self.budget.spend(_ELEMENT * (parts + 1))
        if name in ("rfind", "rindex", "rsplit", "rpartition") and isinstance(wanted, str):
            self.budget.spend(len(text) * len(wanted) // 4)  # Python searches backwards in quadratic time at the worst

    def _paid_test(self, test: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(test)  # and so with Jinja's mark for those that want the environment
        def paid(*given: Any, **named: Any) -> Any:
            self.budget.spend(_STEP)
            if len(given) > 1:  # it compares
                self.budget.weigh([one for one in given if one is not self])
            return test(*given, **named)

        return paid

    # What _Meter writes into the template.

    def tick(self, cost: int) -> bool:
        """Pay for a round."""
        self.budget.spend(cost)
        return True

    def weighed(self, value: Any) -> Any:
        """A value, paid for with all that it holds."""
        self.budget.weigh(value)
        return value

    def held(self, value: Any) -> Any:
        """A new value, paid for."""
        self.budget.hold(value)
        return value

    def concatenated(self, *values: Any) -> str:
        """The `~` operator."""
        return self.budget.join(values)


_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        {
            *("strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "lower", "upper", "title", "capitalize", "casefold"),
            *("swapcase", "startswith", "endswith", "find", "rfind", "index", "rindex", "count", "isdigit", "isalpha"),
            *("isalnum", "isnumeric", "isdecimal", "isspace", "islower", "isupper", "istitle", "split", "rsplit"),
            *("splitlines", "partition", "rpartition", "join", "replace"),
        }
    ),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"index", "count"}),
    tuple: frozenset({"index", "count"}),
}


@pass_context  # and, because of it, never at compile time
def _finalize(context: Context, value: Any) -> str:
    environment = context.environment
    assert isinstance(environment, SandboxEnvironment)  # noqa: S101  # nothing else is made with this function
    return environment.budget.text(value)


class _Generation(Extension):
    """`{% generation %}` marks an assistant's text for training; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own way to declare it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Meter(NodeTransformer):
    """Rewrites a template's tree, where Jinja calls nothing that could be overridden, so that it calls the environment."""

    def _call(self, name: str, *values: nodes.Expr) -> nodes.Call:
        function = nodes.EnvironmentAttribute(name)
        return nodes.Call(function, list(values), [], None, None, lineno=values[0].lineno)

    def _tick(self, body: list[nodes.Node], line: int) -> nodes.Call:
        data = itertools.chain.from_iterable(node.find_all(nodes.TemplateData) for node in body)
        return self._call("tick", nodes.Const(_STEP + sum(len(one.data) for one in data), lineno=line))

    def _repeated(self, node: Any) -> nodes.Node:
        """What has a body that runs many times."""
        tick = self._tick(node.body, node.lineno)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node  # type: ignore[no-any-return]

    visit_Macro = visit_CallBlock = visit_Block = _repeated  # noqa: N815  # the names are Jinja's

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        tick = self._tick([], node.lineno)
        self._repeated(node)
        if node.test is not None:  # it runs for what it leaves out, too
            node.test = nodes.And(tick, node.test, lineno=node.lineno)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = self._call("weighed", node.expr)
        for operand in node.ops:
            operand.expr = self._call("weighed", operand.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._call("concatenated", *node.nodes)

    def visit_List(self, node: nodes.Expr) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._call("held", node)

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        # With all that it holds: a tuple may be a key, and the hash of shared tuples walks them as often as they are shared.
        return self._call("weighed", node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._call("held", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> nodes.Node:  # noqa: N802
        raise jinja2.TemplateSyntaxError("the autoescape tag cannot be used", node.lineno)
