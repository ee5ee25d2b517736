# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: the course tool
#
# The chapter follows imports downwards: from a notebook to all it depends on. The first exercise turns the arrows
# round, the second writes a gate that the course does not have.

# %%
import ast

from nanochat_lib.course.layers import import_graph, reachable

# %% [markdown]
# ## rebuild_order
#
# `course build` compares stamps, notebook by notebook. Suppose we had no stamps, only the list of edited modules.
# Which modules are affected, and in which order should we look at them? A module is affected when it was edited, or
# when it imports an affected one, however far down. In your list every module stands after all affected modules that
# it imports; where that leaves a choice, take the alphabetically first.


# %%
#| exercise rebuild_order
def rebuild_order(edited: set[str], graph: dict[str, set[str]]) -> list[str]:
    """List the modules that a set of edits affects, imported ones first.

    Args:
        edited: names of the modules that changed.
        graph: module to the modules it imports; it has no cycles.
    """
    ### BEGIN SOLUTION
    waiting = {module for module in graph if edited & (reachable({module}, graph) | {module})}
    order = []
    while waiting:
        ready = [module for module in sorted(waiting) if not graph[module] & waiting]
        order.append(ready[0])
        waiting.remove(ready[0])
    return order
    ### END SOLUTION


# %%
chain = {"base": set(), "left": {"base"}, "right": {"base"}, "top": {"left", "right"}}
assert rebuild_order({"right"}, chain) == ["right", "top"]
assert rebuild_order({"base"}, chain) == ["base", "left", "right", "top"]

# %% [markdown]
# ## unused_exports
#
# A library grows names that nothing uses any more. Write the gate that finds them: every name in a module's `__all__`
# that no *other* module imports with `from nanochat_lib.module import name`. Importing under another name counts;
# using a name inside its own module does not.


# %%
#| exercise unused_exports
def unused_exports(texts: dict[str, str]) -> list[str]:
    """Find exported names that no other module imports.

    Args:
        texts: module name, such as "model.gpt", to source.

    Returns:
        Names such as "model.gpt.GPT", sorted.
    """
    ### BEGIN SOLUTION
    exported, imported = set(), set()
    for module, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                source = (node.module or "").removeprefix("nanochat_lib.")
                imported |= {f"{source}.{alias.name}" for alias in node.names if source != module}
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                exported |= {f"{module}.{name}" for name in ast.literal_eval(node.value)}
    return sorted(exported - imported)
    ### END SOLUTION


# %%
toy = {
    "a": '__all__ = ["used", "idle"]\n\ndef used(): ...\n\ndef idle(): return used()',
    "b": "from nanochat_lib.a import used\n\n__all__ = []",
}
assert import_graph(toy) == {"a": set(), "b": {"a"}}
assert unused_exports(toy) == ["a.idle"]
