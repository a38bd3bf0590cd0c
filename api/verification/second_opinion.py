"""A second opinion on a statement: a small model judges if the quotes support it."""

import json
from collections.abc import Sequence

from api.resources import Resources
from shared.errors import AskfolderError
from shared.log import log
from shared.providers.claude import Claude, Deadline, prompt
from shared.providers.meter import BudgetError

SECONDS = 4.0  # the time limit of one opinion
MAX_TOKENS = 2048  # of an opinion and the thoughts before it
SYSTEM = prompt(__file__, "second_opinion.md")


class SecondOpinion:
    """The judge of one answer's sentences. `usage`: the tokens of its calls, by the names of an answer's usage."""

    def __init__(self, claude: Claude, model: str, deadline: Deadline) -> None:
        self.usage: dict[str, int] = {}
        self._claude, self._model, self._deadline = claude, model, deadline

    @classmethod
    def of(cls, resources: Resources, deadline: Deadline) -> "SecondOpinion | None":
        """Return the judge of the settings; None if ASKFOLDER_CHECK_MODEL is not set."""
        model = resources.settings.check_model
        return cls(resources.claude, model, deadline) if model and resources.claude else None

    def __call__(self, sentence: str, quotes: Sequence[str]) -> bool | None:
        """True if the quotes support the sentence. None: there is no opinion in time, or within the day's cap."""
        content = json.dumps({"quotes": list(quotes), "sentence": sentence}, ensure_ascii=False)
        seconds = min(SECONDS, self._deadline.left())
        try:
            reply = self._claude.complete("checking", self._model, SYSTEM, content, MAX_TOKENS, seconds)
        except BudgetError:
            return None
        except AskfolderError as error:
            log.warning(str(error), action="answer.not_judged")
            return None
        for name, tokens in (("input", reply.tokens.input), ("output", reply.tokens.output)):
            self.usage[f"check_{name}_tokens"] = self.usage.get(f"check_{name}_tokens", 0) + tokens
        return {"yes": True, "no": False}.get(reply.text.strip(" .!\n").lower())
