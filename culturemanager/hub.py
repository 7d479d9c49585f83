"""The Hugging Face hub, asked once before a library asks it: a wrong name is one line at once.

transformers asks for every file of a model that is not in the cache, up to six times each while no answer comes.
"""

from __future__ import annotations

from pathlib import Path

from culturemanager.errors import ModelError, UnknownModelError

TIMEOUT_S = 5.0
CONFIG = "config.json"


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids to ask."""
    import huggingface_hub

    return huggingface_hub.is_offline_mode()


def cached(name: str, file: str) -> Path | None:
    """A model's file in the local cache.

    Raises:
        UnknownModelError: no model can have that name.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        found = huggingface_hub.try_to_load_from_cache(name, file)
    except HFValidationError as error:
        raise UnknownModelError(f"{name!r} is no folder that exists, and cannot be a name on the Hugging Face hub. Expected "
                                "`owner/name`, such as `Qwen/Qwen2.5-0.5B-Instruct`, or the path of a folder.") from error
    return Path(found) if isinstance(found, str) else None


def require(name: str, field: str) -> None:
    """Raise unless the hub has the model and shows it to us. One request, not tried again.

    Args:
        field: the setting that names the model.

    Raises:
        UnknownModelError: there is no such model, or it is not shown to us.
        ModelError: the hub may not be asked, or does not answer.
    """
    import httpx2
    import huggingface_hub
    from huggingface_hub.constants import ENDPOINT as host
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError

    or_folder = f"or set `{field}` to a local folder"
    if is_offline():
        raise ModelError(f"The model {name!r} is not in the local cache, and HF_HUB_OFFLINE is set, so {host} was not asked. "
                         f"Unset it to download the model, {or_folder}.")
    try:
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(name, CONFIG), timeout=TIMEOUT_S)
    except EntryNotFoundError:
        return  # the model is there; what its files lack is for whoever reads them to say
    except GatedRepoError:
        raise UnknownModelError(f"The model {name!r} is gated: {host} shows it only to who has accepted its terms. Accept them "
                                f"on its page, set HF_TOKEN to a token of yours, {or_folder}.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise UnknownModelError(f"{host} has no model {name!r}, or shows it to others only (it answered {status}, asked "
                                    f"once). Check the name; set HF_TOKEN for a private or gated model, {or_folder}.") from None
        raise ModelError(f"{host} answered {status} when asked once for the model {name!r}. Run the same command again later, "
                         f"{or_folder}.") from None
    except (httpx2.HTTPError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{host} cannot be reached ({reason}), and the model {name!r} is not in the local cache. It was asked "
                         f"for once. Check the connection, {or_folder}.") from None


def fetch_config(name: str) -> Path:
    """The model's `config.json`, downloaded unless it is cached; `require` comes first.

    Raises:
        UnknownModelError: the model has none.
        ModelError: the hub does not answer any more.
    """
    import httpx2
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RemoteEntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(name, CONFIG))
    except RemoteEntryNotFoundError:
        raise UnknownModelError(f"The model {name!r} has no {CONFIG}: expected one that transformers loads, with safetensors "
                                "weights, and not a file for another program (GGUF).") from None
    except (EntryNotFoundError, HfHubHTTPError, httpx2.HTTPError, OSError) as error:  # the first: no answer, and no copy here
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{CONFIG} of the model {name!r} could not be downloaded ({reason}). Run the same command "
                         "again.") from None
