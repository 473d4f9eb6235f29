"""Where the speeds of `disagg plan` and `simulate` come from: files, or kernel tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from disagg_operator.cli.progress_display import ProgressDisplay
from disagg_operator.performance import kernel_tables, profile_file
from disagg_operator.performance.model_shape import ModelShape, named
from disagg_operator.performance.profile import Profile, ProfileError


@dataclass(frozen=True, slots=True)
class Speeds:
    """The profiles that replace estimates."""

    profiles: Mapping[str, list[Profile]]
    """The profiles of a GPU by its name."""
    words: tuple[str, ...]
    """Where they come from, in words."""


def of_model(
    files: Mapping[str, str], sources: list[kernel_tables.TableSource], model: ModelShape, anyway: bool
) -> Speeds:
    """Return the profiles of a model: those in files by the name of a GPU, and those of tables.

    `anyway` also accepts files of another model or GPU. Raises ProfileError.
    """
    profiles: dict[str, list[Profile]] = {}
    words = []
    for gpu, file in files.items():
        profiles[gpu] = [profile_file.load_of(file, model.name, gpu, anyway)]
        of = profile_file.load_with_origin(file)[1]
        words.append(f"{gpu}: {file if of is None else f'{file}: {of.words()}'}")
    if sources:
        with ProgressDisplay() as working:
            for source in sources:
                if source.gpu.name in profiles:
                    raise ProfileError(f"{source}: the speeds of {source.gpu.name} are given twice")
                found = kernel_tables.read(source, model, say=working.say)
                profiles[source.gpu.name] = [t.profile for t in found]
                words += [t.words for t in found]
    return Speeds(profiles, tuple(words))


def of_worker(name: str, model: str, tensor: int | None, anyway: bool) -> tuple[Profile, str]:
    """Return the profile that a simulation uses, and where it comes from in words.

    `name` is a file, a published profile, or kernel tables, which need the name of a model and take
    the fewest GPUs that it fits unless `tensor` says how many. Raises ProfileError.
    """
    source = kernel_tables.source_of(name)
    if source is None:
        if tensor is not None:
            raise ProfileError(f"--tensor: is for {kernel_tables.PREFIX}SYSTEM/BACKEND; {name} has its number of GPUs")
        profile = profile_file.load_of(name, model, anyway=anyway)
        of = profile_file.load_with_origin(name)[1]
        return profile, name if of is None else f"{name}: {of.words()}"
    shape = named(model)
    if shape is None:
        raise ProfileError(f"{name}: needs --model with a name that `disagg plan` knows, not {model!r}")
    with ProgressDisplay() as working:
        found = kernel_tables.read(source, shape, tensor or 0, working.say)[0]
    return found.profile, f"{name}: {found.words}"
