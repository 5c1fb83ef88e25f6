"""A bash completion of a command: its sub-commands, options, and the values that are a choice or a file.

Theory: bash walks the words before the cursor.  One that is a sub-command goes down the tree; what follows an option
with a value is that value.  The table of the tree is written out, so that no Python is started at a key press.
`=` is a word of its own to bash (COMP_WORDBREAKS).
"""

from __future__ import annotations

from typing import Iterator, List

from vmagent.manual.trees import Argument, Command, Node, tree

_WALK = r"""
_@()
{
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD - 1]}" path="" value="" one i
    local commands options valued files operands offered=""
    if [ "$word" = "=" ]; then word=""; elif [ "$before" = "=" ]; then before="${COMP_WORDS[COMP_CWORD - 2]}"; fi
    COMPREPLY=()
    _@_words ""
    for ((i = 1; i < COMP_CWORD; i++)); do
        one="${COMP_WORDS[i]}"
        if [ "$one" = "=" ]; then value=yes
        elif [ -n "$value" ]; then value=""
        elif [[ " $valued " == *" $one "* ]]; then value=yes
        elif [[ " $commands " == *" $one "* ]]; then path="${path:+$path }$one"; _@_words "$path"
        fi
    done
    if [[ " $files " == *" $before "* ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
        return
    fi
    if [[ " $valued " == *" $before "* ]]; then offered="$(_@_choices "$path $before")"
    elif [[ "$word" == -* ]]; then offered="$options"
    elif [ -n "$commands" ]; then offered="$commands"
    elif [ -n "$operands" ]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
        return
    fi
    mapfile -t COMPREPLY < <(compgen -W "$offered" -- "$word")
}
complete -F _@ @@
"""


def of_command(command: Command) -> str:
    """The script; it is sourced by bash-completion when the command is first completed."""
    nodes = list(tree(command.parser()))
    lines = [f"# bash completion of {command.name}, made from its parser by `python3 -m vmagent.manual`."]
    lines += ["_@_words()", "{", '    commands="" options="" valued="" files="" operands=""', '    case "$1" in']
    lines += [line for node in nodes for line in _words(node)]
    lines += ["    esac", "}", "", "_@_choices()", "{", '    case "$1" in']
    lines += [line for node in nodes for line in _choices(node)]
    lines += ["        *) ;;", "    esac", "}"]
    script = "\n".join(lines) + _WALK
    return script.replace("@@", command.name).replace("_@", "_" + command.name.replace("-", "_"))


def _words(node: Node) -> Iterator[str]:
    options = [one for one in node.arguments if one.flags]
    rows = {
        "commands": list(node.commands),
        "options": _flags(options),
        "valued": _flags([one for one in options if one.value]),
        "files": _flags([one for one in options if one.is_file]),
        "operands": ["files" for one in node.arguments if not one.flags and one.is_file][:1],
    }
    said = "\n".join(f'            {name}="{" ".join(words)}"' for name, words in rows.items() if words)
    yield f'        "{" ".join(node.path)}")\n{said}\n            ;;'


def _choices(node: Node) -> Iterator[str]:
    for one in node.arguments:
        for flag in one.flags if one.choices else ():
            yield f'        "{" ".join(node.path)} {flag}") echo "{" ".join(one.choices)}" ;;'


def _flags(options: List[Argument]) -> List[str]:
    return [flag for one in options for flag in one.flags]
