"""Chat templates: what real ones need works, and what hostile ones try ends soon, in one line, in little memory."""

import datetime
import json
import resource
import subprocess
import sys
import time

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgegen.chat_template import ChatTemplate
from edgegen.errors import BundleError, InputError

MESSAGES = [
    {"role": "system", "content": "Be terse.\n"},
    {"role": "user", "content": " Hi! naïve 日本 <b> "},
    {"role": "assistant", "content": "<think>why\nnot</think>\nHello."},
    {"role": "user", "content": "Bye"},
]
BOMB = "{% set ns = namespace(s='aaaaaaaaaa') %}{% for i in range(64) %}{% set ns.s = STEP %}{% endfor %}"
HUGE = "{% set s = 'ab' * 10000000 %}"


def render(source, messages=MESSAGES, **variables):
    return ChatTemplate(source, variables).render(messages)


CHATML = """{% for message in messages %}
    {%- if loop.first and messages[0]['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}"""
LLAMA = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content|trim %}
{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}
{% for m in rest if m['role'] in ['user', 'assistant'] %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}{% endif %}
[{{ m.role|upper }} {{ loop.index }}/{{ rest|length }}] {{ m.content.strip() }}{% endfor %} {{ system }}"""
QWEN = """{%- set ns = namespace(last=messages|length - 1, text='', seen=[]) %}
{%- macro show(text, n=0) %}{% if n < 2 %}({{ text }}{{ show(text, n + 1) }}){% endif %}{% endmacro %}
{%- for message in messages[::-1] %}{% if message.role == 'assistant' and '</think>' in message.content %}
{%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}{{ show(content) }}{% continue %}{% endif %}
{%- set ns.text = ns.text ~ message.role ~ loop.index0 %}{% set ns.seen = ns.seen + [message.role] %}{% endfor %}
{%- generation %}{{ ns.text }} {{ ns.seen|unique|sort|join(', ') }}{% endgeneration %}
{%- if tools is not none %}tools{% endif %} {{ {'a': [1, 2.5, none, true], 'é': 'x"y'}|tojson }}
{{ [1,{'b': 2}]|tojson(indent=2) }}
{%- for key, value in {'b': 1, 'a': 2}|dictsort %}{{ key }}={{ value }};{% endfor %}
{{- messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|map('trim')|join('|') }}
{{- 'a-b'.replace('-', '+') }}{{ 'x'|indent(2, true) }}{{ 7 // 2 ** 1 * 2 }}{{ undefined_thing }}{{ missing|default('d') }}
{{- [3, 1]|sort|first }}{{ 'abc'|list|last }}{{ '12'|int + 1 }}{{ [[1, 2], ('a',)] }}{{ 'ß'|upper }}{{ 1.25|round(1) }}"""


@pytest.mark.parametrize("source", [CHATML, LLAMA, QWEN])
def test_a_template_gives_what_jinja_alone_gives(source):
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    plain.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    without_marks = source.replace("{%- generation %}", "{%- if true %}").replace("{% endgeneration %}", "{% endif %}")
    expected = plain.from_string(without_marks).render(
        messages=MESSAGES, add_generation_prompt=True, bos_token="<s>", tools=None
    )
    assert render(source, bos_token="<s>") == expected


def test_the_generation_prompt_can_be_left_out():
    template = ChatTemplate(CHATML)
    assert template.render(MESSAGES) == template.render(MESSAGES, add_generation_prompt=False) + "<|im_start|>assistant\n\n"


def test_a_long_conversation_fits_in_the_budget():
    messages = [{"role": "user", "content": "word " * 2000}] * 100  # a million characters
    assert len(render(CHATML, messages)) > 1_000_000
    assert len(render(LLAMA.replace("{{ raise_exception('roles must alternate') }}", ""), messages)) > 900_000


def test_a_template_refuses_messages_by_an_input_error():
    with pytest.raises(InputError, match=r"refuses these messages: roles must alternate$"):
        render(LLAMA, [{"role": "user", "content": ""}] * 2)


def test_the_date_is_this_machines():
    today = datetime.datetime.now().astimezone().strftime("%d %b %Y")
    assert render("{{ strftime_now('%d %b %Y') }}") == today


HOSTILE = {
    "attribute": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attribute by filter": "{{ ''|attr('__class__') }}",
    "globals of a function": "{{ raise_exception.__globals__.os }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__.x }}",
    "self": "{{ self._TemplateReference__context.environment }}",
    "generator frame": "{{ (messages|map('trim')).gi_frame.f_builtins }}",
    "change the messages": "{{ messages.append(1) }}",
    "long text": "{{ 'a' * 10**9 }}",
    "long list": "{{ [1] * 10**9 }}",
    "large power": "{{ 10 ** (10 ** 10) }}",
    "many powers": "{{ 9 ** 300 * 9 ** 300 }}",
    "one long loop": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops that keep nothing": (
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}"
    ),
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "recursive macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching macro": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "branching block": "{% set ns=namespace(n=0) %}{% block b %}{% set ns.n=1 %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "large data in a loop": "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "captured in a loop": HUGE + "{% set x %}{% for i in range(999) %}{{ s }}{% endfor %}{% endset %}",
    "doubling by +": BOMB.replace("STEP", "ns.s + ns.s"),
    "doubling by ~": BOMB.replace("STEP", "ns.s ~ ns.s"),
    "doubling by join": BOMB.replace("STEP", "[ns.s, ns.s]|join"),
    "doubling by str.join": BOMB.replace("STEP", "'x'.join([ns.s, ns.s])"),
    "doubling by replace": BOMB.replace("STEP", "ns.s.replace('a', 'aa')"),
    "doubling by the replace filter": BOMB.replace("STEP", "ns.s|replace('a', 'aa')"),
    "doubling by list +": BOMB.replace("'aaaaaaaaaa'", "[1]").replace("STEP", "ns.s + ns.s"),
    "doubling by sharing, printed": BOMB.replace("STEP", "[ns.s, ns.s]") + "{{ ns.s }}",
    "doubling by sharing, as JSON": BOMB.replace("STEP", "{'a': ns.s, 'b': ns.s}") + "{{ ns.s|tojson }}",
    "doubling by sharing, compared": (
        BOMB.replace("STEP", "[ns.s, ns.s]") + BOMB.replace("ns", "nt").replace("STEP", "[nt.s, nt.s]") + "{{ ns.s == nt.s }}"
    ),
    "doubling by sharing, as a key": BOMB.replace("STEP", "(ns.s, ns.s)") + "{{ {ns.s: 1} }}",
    "a namespace printed": "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a }}",
    "padding by a filter": "{{ 'a'|center(10**9) }}",
    "padding by a method": "{{ 'a'.ljust(10**9) }}",
    "padding by %": "{{ '%1000000000d' % 1 }}",
    "padding by format": "{{ '{:>1000000000}'.format(1) }}",
    "bytes of a number": "{{ (5).to_bytes(10**9, 'big') }}",
    "wide indent": "{{ 'a\nb'|indent(10**9) }}",
    "wide JSON": "{{ [[1]]|tojson(indent=10**9) }}",
    "precise round": "{{ 1.5|round(10**9, 'floor') }}",
    "text to a list": HUGE + "{{ s|select|list|length }}",
    "text sorted": HUGE + "{{ s|select|sort|length }}",
    "split": HUGE + "{{ s.split('a')|length }}",
    "slow search": "{% set s = 'a' * 3000000 %}{{ s.rfind('b' + 'a' * 100000) }}",
    "slices": HUGE + "{% set t = [s[1:], s[2:], s[3:]] %}",
    "lorem ipsum": "{{ lipsum(n=10**6) }}",
    "long number read": "{{ ('9' * 5000000)|int }}{{ 10 ** (10 ** 10) }}",
    "date": "{{ strftime_now('%Y' * 10000000) }}",
    "autoescape": "{% autoescape 'a' * 10**9 %}{% endautoescape %}",
    "a file": "{% include '/etc/passwd' %}",
    "deep brackets": "{{ " + "(" * 50_000 + ")" * 50_000 + " }}",
    "deep lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "deep loops": "{% for a in [1] %}" * 300 + "{% endfor %}" * 300,
    "no template": "{% for %}",
    "unknown filter": "{{ 1|nothing }}",
    "error in it": "{{ 1 / 0 }}",
    "missing": "{{ messages[0].nothing.more }}",
    "too long": "x" * 200_000,
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_is_one_line_and_soon(source):
    start = time.perf_counter()
    with pytest.raises(BundleError, match=r"^chat template: [^\n]+$"):
        render(source)
    # The budget allows for about 2 s on a slow machine; nothing here needs it.
    assert time.perf_counter() - start < 5


def test_all_hostile_templates_together_need_little_memory():
    code = (
        "import json, sys\nfrom edgegen.chat_template import ChatTemplate\nfrom edgegen.errors import BundleError\n"
        "for source in json.load(sys.stdin):\n"
        "    try: ChatTemplate(source).render([])\n"
        "    except BundleError: continue\n"
        "    raise SystemExit(source[:80])\n"
        # not ru_maxrss, which a child inherits from a parent that holds more
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    limit = 2**30

    def confine():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(list(HOSTILE.values())),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=confine,
        timeout=120,
        env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-300:]
    assert int(done.stdout) * 1024 < 400 * 2**20


def test_a_template_that_is_not_utf8_is_a_bundle_error():
    assert ChatTemplate.from_bytes("é{{ bos_token }}".encode(), {"bos_token": "<s>"}).render([]) == "é<s>"
    with pytest.raises(BundleError, match="not UTF-8"):
        ChatTemplate.from_bytes(b"\xff\xfe")
