"""Triton's interpreter, but for what it needlessly repeats."""

import functools
from collections.abc import Callable
from typing import Any

from triton.runtime import interpreter


@functools.cache
def patch_once_a_launch() -> None:
    """The interpreter makes triton.language its own when a kernel is launched, and Triton 3.7 does so again whenever a
    kernel calls a function: thousands of times, in 25 to 42% of all time. From now on it does so once for each module.
    """
    if not (hasattr(interpreter, "_patch_lang") and hasattr(interpreter, "_LangPatchScope")):
        return  # another Triton than 3.7: it interprets as it is
    patch_lang, restore = interpreter._patch_lang, interpreter._LangPatchScope.restore
    patched: set[int] = set()  # the modules, by their globals, of the launch under way

    def patch_lang_once(function: Callable) -> Any:
        module = id(function.__globals__)
        if module in patched:
            return interpreter._LangPatchScope()
        patched.add(module)
        return patch_lang(function)

    def restore_at_the_end(self: Any) -> None:  # only the scope of a launch is restored
        patched.clear()
        restore(self)

    interpreter._patch_lang, interpreter._LangPatchScope.restore = patch_lang_once, restore_at_the_end
