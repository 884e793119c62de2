"""Reads C++ and CUDA sources just well enough to find the types and the functions that a file defines."""

import re
from typing import NamedTuple

# What is no code: comments, raw strings, strings and characters. A digit separator (1'000) opens no character.
NOT_CODE = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(?P<mark>[^()\s\\"]{0,16})\(.*?\)(?P=mark)"|'
    r'"(?:\\.|[^"\\\n])*"|(?<!\w)\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)
DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", re.MULTILINE)
NAMESPACE = re.compile(r"(?:^|\s)(?:inline\s+)?namespace(?:\s+([\w:]+))?\s*$")
TYPE = re.compile(r"\b(?:enum\s+class|enum\s+struct|class|struct|union|enum)\b"
                  r"(?:\s*(?:\[\[[^\]]*\]\]|alignas\s*\([^)]*\)|__align__\s*\([^)]*\)))*"
                  r"\s+(\w+)\s*(?:final\s*)?(?::[^:].*)?$", re.DOTALL)
TEMPLATE_ARGUMENTS = re.compile(r"<[^<>;{}()]*>")
# In template arguments, types that have parentheses: `R (*)(A)`, and `R(A)` before the closing bracket.
FUNCTION_TYPE = re.compile(r"\(\s*\*\s*\)\s*\([^()]*\)|\([^()<>]*\)(?=\s*>)")
ATTRIBUTE = re.compile(r"\b(?:__launch_bounds__|__attribute__|alignas|noexcept)\s*\((?:[^()]|\([^()]*\))*\)")
EXTERN = re.compile(r'\bextern\b\s*$')
FUNCTION_NAME = re.compile(r"(~?[\w:]+|operator\s*\S{1,3})\s*\($")


class Type(NamedTuple):
    name: str  # qualified: goldfinch::cuda::Context
    line: int
    local: bool  # in an anonymous namespace


class Function(NamedTuple):
    name: str
    line: int
    lines: int


def blank(match):
    """Spaces in place of the text, with its line ends."""
    return re.sub(r"[^\n]", " ", match[0])


def code_of(text):
    """The text with spaces in place of comments, literals and preprocessor lines; every line keeps its number."""
    return DIRECTIVE.sub(blank, NOT_CODE.sub(blank, text))


def head_of(code, begin, brace):
    """What stands before an opening brace since the last statement, and where it begins."""
    head = code[begin:brace]
    stripped = head.lstrip()
    return stripped.rstrip(), begin + len(head) - len(stripped)


def scopes(code):
    """Yields (kind, name, begin, end, enclosing scopes) of every block at namespace or class level.

    Kinds are "namespace" (the name is None if it is anonymous), "type" and "function".
    """
    stack, begin = [], 0
    for match in re.finditer(r"[{};]", code):
        at, mark = match.start(), match[0]
        if mark == "{":
            head, head_begin = head_of(code, begin, at)
            kind, name = classify(head) if all(scope[0] in ("namespace", "type") for scope in stack) else ("block", "")
            stack.append((kind, name, head_begin))
        elif mark == "}" and stack:
            kind, name, head_begin = stack.pop()
            if kind != "block":
                yield kind, name, head_begin, at, [scope[:2] for scope in stack]
        begin = at + 1


def classify(head):
    """The kind and the name of a block that opens after `head`."""
    namespace = NAMESPACE.search(head)
    if namespace:
        return "namespace", namespace[1]
    if EXTERN.search(head):
        return "namespace", ""
    plain, before = head, None
    while plain != before:
        before, plain = plain, TEMPLATE_ARGUMENTS.sub("", FUNCTION_TYPE.sub("", plain))
    found = TYPE.search(plain)
    if found and "(" not in plain[found.end(1):] and not plain[:found.start()].rstrip().endswith(("(", ",")):
        return "type", found[1]
    head = ATTRIBUTE.sub("", head)
    opening = head.find("(")
    if opening >= 0 and "=" not in head[:opening].replace("operator=", "").replace("operator==", ""):
        name = FUNCTION_NAME.search(head[:opening + 1])
        return "function", name[1] if name else "?"
    return "block", ""


def line_of(code, at):
    return code.count("\n", 0, at) + 1


def types_of(text):
    """The types that the file defines at namespace level."""
    code = code_of(text)
    found = []
    for kind, name, begin, _, stack in scopes(code):
        if kind == "type" and all(scope[0] == "namespace" for scope in stack):
            path = [scope[1] for scope in stack if scope[1]] + [name]
            found.append(Type("::".join(path), line_of(code, begin), any(scope[1] is None for scope in stack)))
    return found


def functions_of(text):
    """The functions that the file defines, with their lengths from the first line of the head to the closing brace."""
    code = code_of(text)
    return [Function(name, line_of(code, begin), code.count("\n", begin, end) + 1)
            for kind, name, begin, end, _ in scopes(code) if kind == "function"]
