"""`completion SHELL`: a script that completes commands and flags, made from the tables of commands and flags."""

from __future__ import annotations

from collections.abc import Sequence

from embedserve.commands.asking import Parser
from embedserve.server.flags import FLAGS
from embedserve.server.hangups import SUB_COMMANDS

__all__ = ["completion"]

_BASH = """\
_embedserve() {{
    local word=${{COMP_WORDS[COMP_CWORD]}}
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "{flags}" -- "$word"))
        [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace
    elif [[ $COMP_CWORD == 1 ]]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word") $(compgen -d -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _embedserve embedserve
"""
_ZSH = """\
#compdef embedserve
_embedserve() {{
    if [[ $PREFIX == -* ]]; then
        compadd -S '' -- {flags}
    elif (( CURRENT == 2 )); then
        compadd -- {commands}
        _files -/
    else
        _files
    fi
}}
compdef _embedserve embedserve
"""
_FISH = """\
complete -c embedserve -n __fish_use_subcommand -a '{commands}'
{lines}
"""


def completion(arguments: Sequence[str], program: str) -> int:
    """Print the script for a shell, and return 0."""
    parser = Parser(
        prog=f"{program} completion",
        description="Prints a script that completes the command `embedserve` in a shell.",
        epilog="bash: source <(embedserve completion bash). zsh: source <(embedserve completion zsh), after compinit. "
        "fish: embedserve completion fish | source",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    shell = parser.parse_args(arguments).shell
    commands = " ".join(SUB_COMMANDS)
    if shell == "fish":
        lines = "\n".join(f"complete -c embedserve -l {name} -r" for name in FLAGS)
        print(_FISH.format(commands=commands, lines=lines), end="")
    else:
        flags = " ".join(f"--{name}=" for name in FLAGS)
        print((_BASH if shell == "bash" else _ZSH).format(commands=commands, flags=flags), end="")
    return 0
