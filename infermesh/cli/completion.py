"""``infermesh completion``: the script that a shell loads, and the answer to each TAB.

The scripts hand over the line up to the cursor, unsplit: bash takes words apart at ``=`` and ``:``, which are part of
an override. Typer knows the commands and options, and whose turn it is; :mod:`infermesh.cli.completers` what it may be.
Where no option is on the line of ``run`` or ``plan``, it is an override's turn, and Typer, which takes longer than all
the rest, is not asked.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

from infermesh.cli.complete_overrides import overrides_like

if TYPE_CHECKING:
    import typer

LINE = "_INFERMESH_COMPLETE_LINE"
SHELL = "_INFERMESH_COMPLETE_SHELL"
_OPEN = (".", "=", "/")  # the end of a word that goes on: no space behind it
_HYDRA_OPTIONS = ("--cfg", "--config-dir", "--hydra-help", "--info", "--multirun", "--package", "--resolve")

_BASH = """\
_infermesh_completion() {
    local IFS=$'\\n' line="${COMP_LINE:0:$COMP_POINT}"
    COMPREPLY=($(_INFERMESH_COMPLETE_SHELL=bash _INFERMESH_COMPLETE_LINE="$line" \\
                 _INFERMESH_COMPLETE_BREAKS="$COMP_WORDBREAKS" "$1" 2>/dev/null))
}
complete -o default -o nospace -F _infermesh_completion infermesh"""
_ZSH = """\
#compdef infermesh
_infermesh() {
    local -a whole open
    local item
    for item in ${(f)"$(_INFERMESH_COMPLETE_SHELL=zsh _INFERMESH_COMPLETE_LINE="${(j: :)words[1,CURRENT]}" \\
                        ${words[1]} 2>/dev/null)"}; do
        if [[ $item == *[./=] ]]; then open+=("$item"); else whole+=("$item"); fi
    done
    if (( ${#whole} + ${#open} == 0 )); then _files; return; fi
    (( ${#whole} )) && compadd -a whole
    (( ${#open} )) && compadd -S '' -a open
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _infermesh "$@"; else compdef _infermesh infermesh; fi"""
_FISH = """\
function __infermesh_completion
    set -l found (env _INFERMESH_COMPLETE_SHELL=fish _INFERMESH_COMPLETE_LINE=(commandline -cp) infermesh 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete --command infermesh --no-files --arguments '(__infermesh_completion)'"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def print_script(shell: str) -> None:
    """Print the script that a shell loads. An unknown shell is an error of usage."""
    from infermesh.cli.common import fail

    if shell not in SCRIPTS:
        fail(f"completion {shell}: there is none for this shell. There is: {', '.join(SCRIPTS)}.", code=2)
    print(SCRIPTS[shell])


def answer(load: Callable[[], typer.Typer]) -> None:
    """Print what may stand at the end of the line in the variable :data:`LINE`, one word a line; nothing: paths.

    Parameters
    ----------
    load
        Imports the application. It is called where Typer has to be asked.
    """
    line, shell = os.environ.pop(LINE), os.environ.pop(SHELL, "bash")
    words, word = split_line(line)
    broken = _broken_off(word, os.environ.pop("_INFERMESH_COMPLETE_BREAKS", "")) if shell == "bash" else 0
    for item in _one_level(_asked(load, words, word), word):
        # The shell has the part before its own break already; bash is told the blank, the others set it.
        print(item[broken:] + (" " if shell == "bash" and not item.endswith(_OPEN) else ""))


def split_line(line: str) -> tuple[list[str], str]:
    """The complete words of a line behind the command's name, and the one that is begun.

    Examples
    --------
    >>> split_line("infermesh run +experiment=mine 'stages.a b")
    (['run', '+experiment=mine'], 'stages.a b')
    """
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words = []
    try:
        for token in lexer:
            words.append(token)  # noqa: PERF402 - those before an open quote count
    except ValueError:  # a quote that is still open
        words.append(lexer.token)
        return words[1:-1], words[-1]
    return (words[1:], "") if line[-1:].isspace() or len(words) < 2 else (words[1:-1], words[-1])


def _asked(load: Callable[[], typer.Typer], words: list[str], word: str) -> list[str]:
    """What is offered for a word behind others."""
    if words[:1] in (["run"], ["plan"]) and not any(each.startswith("-") for each in (*words, word)):
        found = [each for each in overrides_like(word, words[1:]) if each.startswith(word)]
    else:
        found = _typers(load(), words, word)
    found = [each for each in found if each and not re.search(r"\s", each)]  # none to quote
    if found == [word] and words:
        return []  # Typer's word for a path
    option, equals, _ = word.partition("=")
    if option.startswith("-") and equals:
        return [f"{option}={value}" for value in found]
    if words[:1] in (["run"], ["plan"]) and word.startswith("-"):
        found += [option for option in _HYDRA_OPTIONS if option.startswith(word)]
    return found


def _typers(app: typer.Typer, words: list[str], word: str) -> list[str]:
    """What Typer offers for a word behind others."""
    importlib.import_module("typer.completion").completion_init()
    everything = ["infermesh", *words, word]
    os.environ.update(
        COMP_WORDS=shlex.join(everything), COMP_CWORD=str(len(everything) - 1), _INFERMESH_COMPLETE="complete_bash"
    )
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        app(prog_name="infermesh")
    return out.getvalue().splitlines()


def _one_level(found: list[str], word: str) -> list[str]:
    """Keys up to their next point alone, in their order: a config has a hundred, and a section is named once."""
    name = word.lstrip("+~")
    if name.startswith("-") or "=" in name:
        return found
    shown = []
    for item in found:
        begun, point, _ = item[len(word) :].partition(".")
        shown.append(word + begun + point if point and item.endswith(_OPEN) and "/" not in item else item)
    return [item for item in dict.fromkeys(shown) if item != word]


def _broken_off(word: str, breaks: str) -> int:
    """The length of the part of a word that bash holds for a word of its own."""
    return max((word.rfind(mark) + 1 for mark in "=:" if mark in breaks), default=0)
