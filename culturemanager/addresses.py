"""Whether the addresses that a project names answer: one short request each, none tried again.

    search engine       a search for one word
    language model      its list of models, with the key
    serving.upstream    the same
"""

from __future__ import annotations

import os

from culturemanager.config import Project
from culturemanager.errors import LanguageModelError, ProviderError, SearchError
from culturemanager.providers.json_api import shown
from culturemanager.sections.model import UpstreamConfig
from culturemanager.sections.synthesis import OpenAIGenerator
from culturemanager.synthesis.queries import LANGUAGE

TIMEOUT_S = 5.0
QUERY = "etiquette"
LEAVE_OUT = "`--offline` leaves this check out."


def try_each(project: Project) -> None:
    """Raise unless each of them answers.

    Raises:
        SearchError: the search engine gives no results page.
        LanguageModelError: a language model's server does not answer, or refuses the key.
    """
    try_search(project)
    generator, upstream = project.examples.generator, project.serving.upstream
    if generator.kind == "openai":
        _try_models("examples.generator", generator)
    if upstream is not None:
        _try_models("serving.upstream", upstream)


def try_search(project: Project) -> None:
    """Raise `SearchError` unless the project's search engine answers a query; a folder is no address."""
    from culturemanager.providers.search import build_search

    search = project.pages.search
    if search.kind == "folder":
        return
    engine = build_search(search.model_copy(update={"timeout_s": min(search.timeout_s, TIMEOUT_S)}), project, attempts=1)
    try:
        engine.search(QUERY, language=LANGUAGE, limit=1)
    except SearchError as error:
        raise SearchError(f"{project.where('pages.search')}: {error} {LEAVE_OUT}") from None


def _try_models(field: str, server: OpenAIGenerator | UpstreamConfig) -> None:
    """Ask an OpenAI-compatible server for its models. A server that has no such list, but answers, is fine."""
    import httpx2

    address, variable = shown(server.base_url), server.api_key_env or ""
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise LanguageModelError(f"{field}: the environment variable {variable} holds characters that no API key has. "
                                 "Set it again, without line breaks or quotes.")
    try:
        status = httpx2.get(f"{server.base_url.rstrip('/')}/models", timeout=TIMEOUT_S,
                            headers={"Authorization": f"Bearer {key}"} if key else {}).status_code
    except httpx2.TimeoutException:
        raise _no_answer(field, address, f"did not answer within {TIMEOUT_S:g} s") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _no_answer(field, address, f"cannot be reached ({reason.replace(server.base_url, address)})") from None
    if status in (401, 403):
        asked = f"refused the key in {variable} ({status}). Set it again: export {variable}=..." if key else (
            f"asks for an API key ({status}). Put it into an environment variable, and its name into `{field}.api_key_env`.")
        raise LanguageModelError(f"{field}: {address} {asked}")
    if status >= 500:
        raise _no_answer(field, address, f"answered {status}")


def _no_answer(field: str, address: str, what: str) -> ProviderError:
    return LanguageModelError(f"{field}: {address} {what}. Check `{field}.base_url` and that the server runs. {LEAVE_OUT}")
