"""A tower's blocks: its list of layers of one kind, and the norm behind them."""

from torch import nn


def find_blocks(tower: nn.Module) -> tuple[str, list[nn.Module]]:
    """Returns the name of a tower's list of blocks, and the blocks in order: its largest list of modules of one class.

    Raises:
        ValueError: There is no such list.
    """
    lists = [
        (sum(parameter.numel() for parameter in module.parameters()), name, list(module.children()))
        for name, module in tower.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len({type(child) for child in module.children()}) == 1
    ]
    if not lists:
        raise ValueError(f"{type(tower).__name__} has no list of blocks: train it in 'full' or not at all.")
    _, name, blocks = max(lists, key=lambda found: found[0])  # the first of equals, hence the outermost
    return name, blocks


def last_blocks(tower: nn.Module, count: int) -> list[nn.Module]:
    """Returns the last `count` blocks of a tower, and the norm behind them where there is one; not its head.

    Raises:
        ValueError: The tower has fewer.
    """
    name, blocks = find_blocks(tower)
    if count > len(blocks):
        raise ValueError(f"layers: {type(tower).__name__} has {len(blocks)} blocks, and {count} are to be trained.")
    names = [key for key, _ in tower.named_modules()]
    # OPT's last norm is registered before its blocks.
    behind = [key for key in names[: names.index(name)] if "final" in key] + names[names.index(name) :]
    norms = [
        module
        for key in behind
        if "Norm" in type(module := tower.get_submodule(key)).__name__
        # Beside the list, or beside what holds it: not in the blocks, nor in a pooling head.
        and (not (parent := key.rpartition(".")[0]) or name.startswith(f"{parent}."))
    ]
    return [*blocks[-count:], *norms]
