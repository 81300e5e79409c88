"""The command ``kqeq completion bash|zsh|fish``: scripts that complete commands, options, choices and file names.

The scripts are made from the parser and run nothing when a key is pressed.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from kqeq.cli.common import OK

SHELLS = ("bash", "zsh", "fish")


def add_completion(commands: Any, parser: argparse.ArgumentParser) -> None:
    """Add the parser of this command."""
    completion = commands.add_parser(
        "completion",
        help="a script that completes commands and options in your shell",
        description='Print a completion script: eval "$(kqeq completion bash)" in ~/.bashrc (zsh: in ~/.zshrc); '
        "kqeq completion fish > ~/.config/fish/completions/kqeq.fish.",
    )
    completion.add_argument("shell", choices=SHELLS, help="your shell")
    completion.set_defaults(run=lambda arguments: _print(arguments.shell, parser))


def _print(shell: str, parser: argparse.ArgumentParser) -> int:
    print(script(shell, parser), end="")
    return OK


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The completion script of a shell.

    Parameters
    ----------
    shell : {"bash", "zsh", "fish"}
    parser : argparse.ArgumentParser
    """
    commands = _commands(parser)
    if shell == "fish":
        return _fish(commands)
    text = _bash(commands)
    # zsh has a layer that runs completion functions of bash
    return "autoload -U +X bashcompinit && bashcompinit\n" + text if shell == "zsh" else text


def _commands(parser: argparse.ArgumentParser) -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """Help line and parser of every command, by name."""
    (actions,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    helps = {choice.dest: choice.help or "" for choice in actions._choices_actions}
    return {name: (helps.get(name, ""), child) for name, child in actions.choices.items()}


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings]


def _choices(parser: argparse.ArgumentParser) -> list[str]:
    """Words that may stand where no option does."""
    return [str(c) for a in parser._actions if not a.option_strings and a.choices for c in a.choices]


def _bash(commands: dict[str, tuple[str, argparse.ArgumentParser]]) -> str:
    lines = ["_kqeq() {", '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"']
    lines += ["  COMPREPLY=()", '  if [ "$COMP_CWORD" -eq 1 ]; then']
    names = " ".join([*commands, "--help", "--version"])
    lines += [f'    COMPREPLY=($(compgen -W "{names}" -- "$word")); return', "  fi"]
    lines += ['  case "${COMP_WORDS[1]}:$before" in']
    for name, (_, child) in commands.items():
        for option in _options(child):
            if option.choices:
                words = " ".join(map(str, option.choices))
                for flag in option.option_strings:
                    lines.append(
                        f'    {name}:{flag}) COMPREPLY=($(compgen -W "{words}" -- "$word")); return;;'
                    )
    lines += ["  esac", '  case "${COMP_WORDS[1]}" in']
    for name, (_, child) in commands.items():
        flags = " ".join(flag for option in _options(child) for flag in option.option_strings)
        words = " ".join(_choices(child))
        lines.append(f'    {name}) local flags="{flags}" words="{words}";;')
    lines += [
        "    *) return;;",
        "  esac",
        '  case "$word" in',
        '    -*) COMPREPLY=($(compgen -W "$flags" -- "$word"));;',
        '    *) COMPREPLY=($(compgen -W "$words" -- "$word")); [ -n "$words" ] || COMPREPLY=($(compgen -f -- "$word"));;',
        "  esac",
        "}",
        "complete -o filenames -F _kqeq kqeq",
    ]
    return "\n".join(lines) + "\n"


def _fish(commands: dict[str, tuple[str, argparse.ArgumentParser]]) -> str:
    lines = []
    for name, (text, child) in commands.items():
        lines.append(f"complete -c kqeq -n __fish_use_subcommand -f -a {name} -d {_quoted(text)}")
        inside = f"'__fish_seen_subcommand_from {name}'"
        for option in _options(child):
            flags = [
                f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
                for flag in option.option_strings
            ]
            takes = " -r" if option.nargs != 0 else ""
            words = f" -f -a '{' '.join(map(str, option.choices))}'" if option.choices else ""
            about = _help(option, child)
            lines.append(f"complete -c kqeq -n {inside} {' '.join(flags)}{takes}{words} -d {_quoted(about)}")
        words = " ".join(_choices(child))
        if words:
            lines.append(f"complete -c kqeq -n {inside} -f -a '{words}'")
    return "\n".join(lines) + "\n"


def _help(option: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """Help of an option with its defaults filled in."""
    text = (option.help or "").replace("%(default)s", str(option.default))
    return re.sub(r"%\(\w+\)s", "", text.replace("%(prog)s", parser.prog))


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


__all__ = ["SHELLS", "add_completion", "script"]
