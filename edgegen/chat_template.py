"""A model's chat template: messages in, the text of the prompt out. Templates come with bundles and are not trusted."""

import datetime
import functools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import filters as jinja_filters
from jinja2.exceptions import SecurityError

from edgegen.errors import BundleError, InputError
from edgegen.sandbox import Budget, SandboxEnvironment

MAX_CHARACTERS = 131_072  # the longest known template has about 30,000

# What a template may raise by its own fault. RecursionError and MemoryError are Python's answers to deep nesting.
_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """A Jinja template as Hugging Face's checkpoints carry it, run in a sandbox with a budget.

    Args:
        source: the template. It gets `messages`, `add_generation_prompt`, `tools` and `documents` (None), and may call
            `raise_exception(text)` and `strftime_now(format)` (this machine's date).
        special_tokens: further variables, such as "bos_token".

    Raises BundleError for a template that is too long, is no template, or uses what the sandbox does not offer.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        if len(source) > MAX_CHARACTERS:
            raise BundleError(f"chat template: it has {len(source)} characters; at most {MAX_CHARACTERS} are read")
        self._variables = {"tools": None, "documents": None, **(special_tokens or {})}
        functions = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self._environment = SandboxEnvironment({}, functions)
        self._environment.filters = _filters(self._environment)
        self._lock = threading.Lock()  # the environment holds the budget of one rendering
        try:
            self._template = self._environment.compile_metered(source)
        except _FAULTS as error:
            raise _fault(error) from error

    @classmethod
    def from_bytes(cls, data: Any, special_tokens: Mapping[str, str] | None = None) -> "ChatTemplate":
        """The template of a file in UTF-8, given as bytes or a buffer."""
        try:
            source = bytes(data[: 4 * MAX_CHARACTERS + 1]).decode()
        except UnicodeDecodeError as error:
            raise BundleError(f"chat template: it is not UTF-8 ({error})") from error
        return cls(source, special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation.

        Args:
            messages: dicts with "role" and "content".
            add_generation_prompt: end with the beginning of the assistant's answer.

        Raises:
            InputError: the template refuses these messages.
            BundleError: the template fails, or costs more than a template may.
        """
        variables = {**self._variables, "messages": list(messages), "add_generation_prompt": add_generation_prompt}
        with self._lock:
            self._environment.budget = Budget()
            try:
                return self._template.render(variables)
            except _Refusal as error:
                raise InputError(f"the chat template refuses these messages: {_line(error)}") from error
            except _FAULTS as error:
                raise _fault(error) from error


class _Refusal(jinja2.TemplateError):
    """The template called raise_exception."""


def _raise_exception(message: object) -> None:
    raise _Refusal(str(message)[:200])


def _strftime_now(pattern: str) -> str:
    if not isinstance(pattern, str) or len(pattern) > 100:
        raise SecurityError("strftime_now takes a text of at most 100 characters")
    return datetime.datetime.now().astimezone().strftime(pattern)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _fault(error: BaseException) -> BundleError:
    return BundleError(f"chat template: {_line(error)}")


def _filters(environment: SandboxEnvironment) -> dict[str, Callable[..., Any]]:
    """Jinja's filters whose cost is known; the others do not exist here."""
    jinja = jinja_filters.FILTERS
    # The result is no larger than what is there, and its parts are not looked at.
    light = (
        "length",
        "count",
        "first",
        "last",
        "default",
        "d",
        "items",
        "map",
        "select",
        "reject",
        "selectattr",
        "rejectattr",
        "abs",
    )
    heavy = ("sort", "unique", "dictsort", "min", "max", "reverse")  # everything in the argument is looked at
    textual = ("trim", "upper", "lower", "title", "capitalize")  # text in, text out, at most three times as long
    return {
        **{name: _paid(environment, jinja[name]) for name in light},
        **{name: _paid(environment, jinja[name], weigh=True) for name in heavy},
        **{name: _on_text(environment, jinja[name]) for name in textual},
        **_text_filters(environment),
        **_data_filters(environment),
    }


def _paid(environment: SandboxEnvironment, function: Callable[..., Any], *, weigh: bool = False) -> Callable[..., Any]:
    @functools.wraps(function)  # and so with Jinja's marks for those that want the environment or the context
    def paid(*given: Any, **named: Any) -> Any:
        budget = environment.budget
        if weigh:  # what has no length is listed first, or nobody would know its weight
            given = tuple(budget.listed(one) if isinstance(one, Iterator) else one for one in given)
        for one in (*given, *named.values()):
            (budget.weigh if weigh else budget.hold)(one)
        result = function(*given, **named)
        budget.hold(result)
        return result

    return paid


def _on_text(environment: SandboxEnvironment, function: Callable[..., Any]) -> Callable[..., Any]:
    def paid(value: object, *given: Any, **named: Any) -> str:
        text = environment.budget.text(value)
        environment.budget.spend(2 * len(text))
        return str(function(text, *given, **named))

    return paid


def _text_filters(environment: SandboxEnvironment) -> dict[str, Callable[..., Any]]:
    def join(values: Any, d: str = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            values = [environment.getitem(value, attribute) for value in values]
        return environment.budget.join(values, str(d))

    def replace(value: object, old: str, new: str, count: int | None = None) -> str:
        return environment.budget.replace(environment.budget.text(value), old, new, -1 if count is None else count)

    def indent(value: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        text = environment.budget.text(value)
        columns = len(width) if isinstance(width, str) else width
        environment.budget.spend(len(text) + columns * (len(text.splitlines()) + 1))
        return jinja_filters.do_indent(text, width, first, blank)

    return {
        "join": join,
        "replace": replace,
        "indent": indent,
        "string": lambda value: environment.budget.text(value),  # noqa: PLW0108  # the budget changes with every rendering
        "list": lambda value: environment.budget.listed(value),  # noqa: PLW0108
        "safe": lambda value: value,  # nothing is escaped
    }


def _data_filters(environment: SandboxEnvironment) -> dict[str, Callable[..., Any]]:
    def tojson(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        environment.budget.weigh(value)
        _check_json(indent, options)
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
        environment.budget.spend(len(text))
        return text

    def number(kind: Callable[..., Any]) -> Callable[..., Any]:
        def paid(value: object, *given: Any, **named: Any) -> Any:
            # Python takes quadratic time for long numbers.
            return kind("" if isinstance(value, str) and len(value) > 300 else value, *given, **named)

        return paid

    def rounded(value: float, precision: int = 0, method: str = "common") -> float:
        if abs(precision) > 20:
            raise SecurityError("round takes a precision of at most 20")
        return jinja_filters.do_round(value, precision, method)  # type: ignore[arg-type]

    int_filter, float_filter = number(jinja_filters.do_int), number(jinja_filters.do_float)
    return {"tojson": tojson, "round": rounded, "int": int_filter, "float": float_filter}


def _check_json(indent: int | None, options: Mapping[str, Any]) -> None:
    separators = options.get("separators") or ()
    too_wide = (indent or 0) > 16 or any(len(one) > 8 for one in separators)
    if too_wide or not options.keys() <= {"separators", "sort_keys"}:
        raise SecurityError("tojson takes ensure_ascii, indent (at most 16), separators (at most 8 characters), sort_keys")
