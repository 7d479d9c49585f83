"""Norms read from plain English sentences by rules.

Two kinds are read. A *judgement* says of an action whether it is acceptable ("Tipping is
considered rude", "Nobody minds if you come late"). A *recommendation* says what to do ("Guests
should take off their shoes at the door"). A sentence that fits no rule gives nothing: a wrong
norm costs more than a missed one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from culturemanager.synthesis.english import as_base_phrase, as_gerund_phrase, is_base_verb, is_gerund

POSITIVE = (r"(?:perfectly |entirely |quite |absolutely |very |generally |usually |completely |widely |fully |socially )*"
            r"(?:fine|normal|acceptable|polite|expected|welcomed?|customary|common(?:place)?|usual|standard|good manners|appreciated|natural|ordinary|"
            r"okay|ok|all right|alright|unremarkable|harmless|routine|accepted|courteous|respectful|proper|correct|tolerated|considerate|"
            r"well received|everyday|innocent|safe|permitted|allowed|encouraged|thoughtful|the (?:norm|custom|rule|done thing|standard|usual|convention)|"
            r"part of|a compliment|good form|good etiquette|a sign of|a friendly|warmly received|friendly|unproblematic|legal|taken for granted|"
            r"what (?:people|everyone)|no (?:problem|issue|offence|offense|insult|big deal|great matter|disaster|scandal|crime|trouble|shame)|exactly (?:what|right)|in order|well liked|advisable|practi[cs]ed|second nature|uncontroversial|"
            r"seen as (?:good|polite|friendly|warm|sincere|honest|normal)|popular|widespread|typical|relaxed|free|right|prudent|sensible|practical|a good)")
NEGATIVE = (r"(?:very |quite |rather |deeply |highly |extremely |generally |widely |a little |a bit |particularly |truly |plainly |really )*"
            r"(?:rude|impolite|frowned (?:up)?on|inappropriate|unacceptable|bad (?:manners|form|luck|taste|etiquette)|ill[- ]mannered|poor (?:form|manners|taste)|offensive|"
            r"disrespectful|not done|out of place|a mistake|taboo|an? (?:insult|offence|offense|affront|discourtesy|blunder|serious|breach|faux pas)|insulting|unwelcome|improper|"
            r"unusual|discourteous|intrusive|awkward|embarrassing|vulgar|crude|greedy|unlucky|ominous|wrong|shocking|aggressive|forward|"
            r"unthinkable|forbidden|prohibited|illegal|uncouth|tactless|off[- ]limits|impertinent|presumptuous|"
            r"avoided|discouraged|disliked|resented|unwise|inadvisable|tactless|repulsive|out of (?:line|bounds|order)|dangerous|degrading|ungrateful|uncommon|unheard|too (?:forward|familiar|intimate|personal|blunt|casual|informal|much)|a poor|a bad|hurtful|"
            r"inconsiderate|careless|dismissive|cold|strange|odd|jarring|looked down|risky|unseemly|scandalous|associated with (?:death|funerals|mourning)|"
            r"hasty|disgraceful|humiliating|sloppy|obscene|lazy|abrupt|pushy|suspicious|unclean|dirty|childish|uncultured|problematic|confrontational)")
NEGATOR = re.compile(r"\b(?:not|never|no|hardly|isn't|aren't|n't|nothing|far from|anything but|neither|rarely|without|nor|seldom|scarcely|by no means|no longer)\b", re.I)
EVALUATION = re.compile(rf"\b(?:(?P<negative>{NEGATIVE})|(?P<positive>{POSITIVE}))(?![\w-])", re.I)
COPULA = (r"(?:is|are|was|counts? as|remains?|stays?|seems?|looks?|sounds?|feels?|strikes?|comes? across|passes|reads?|would be|will be|can be|"
          r"would|will|may|might|can|should be|ranks?|has become|gives?|causes?|shows?|makes?|tends to be|'s)")
SUBJECT_IT = re.compile(rf"^(?:it|there) {COPULA}\b(?P<judgement>.*?)\s(?P<lead>(?:for (?:\w+ ){{1,4}})?to|if (?:you|someone|guests?|visitors?|people|a \w+|they|anyone)|"
                        r"when (?:you|someone|guests?|visitors?|people|they)|that you|(?:about|in|with|for|at|against)(?= \w+ing\b))\s(?P<action>.+)$", re.I)
DANGLING = re.compile(r"\b(?:until|if|when|that|who|which|there|(?:until|if|when|while|as|because|unless|once) (?:it|they|you|he|she))$", re.I)
LEADING_ADVERB = r"(?:\w+ly |not |always |never |even |to )*"
LEADING_SUBJECT = r"(?:a (?:man|woman|couple|guest)|two \w+ \w+|men|women|couples?) "
NOBODY = re.compile(r"^(?:nobody|no one|no host|no hostess|no waiter|no \w+|hardly anyone|hardly anybody|few (?:people|hosts|waiters|locals|guests|\w+)|almost nobody|almost no one|"
                    r"(?:people|hosts|locals|guests|most people) (?:do not|don't|rarely|will not|won't|never|hardly)|you will not|you won't)\s(?:will |would |really |ever |is |are |be |seriously )*"
                    r"(?:minds?|objects?|takes? offen[cs]e|takes? it amiss|offended|raises? an? eyebrow|raises? eyebrows|blinks?|stares?|think(?:s)? (?:twice|it rude|less|badly|anything|it odd)|"
                    r"bothers?|cares?|complains?|finds? it (?:rude|odd|strange)|frowns?|surprised|looks? twice|notices?|offend(?:s)?(?: \w+)?|upset|put off|cause offen[cs]e)\s?"
                    r"(?:of you|of it|much|at all)?\s?(?:if you|if someone|if a \w+|if|when you|when someone|when a \w+|when|at|to|by|about|that you|over|because you|for)\s(?P<action>.+)$", re.I)
WELCOME = re.compile(r"^(?:.{0,40}?\b)?(?:you (?:may|can|could|might)|guests (?:may|can)|visitors (?:may|can)|people (?:may|can)|(?:you |guests |visitors )?(?:are |is )?(?:free|welcome) to|feel free to)\s"
                     r"(?:safely |freely |simply |happily |also |easily |just |still |always |certainly )*(?P<action>.+)$", re.I)
CONSIDER = re.compile(r"^(?P<who>.{0,60}?)\b(?:consider|find|think|call|deem|regard|see|view|take|count)s? it (?:as )?(?P<judgement>.+?) (?P<lead>to|if you|when you|for \w+ to|if someone|when someone|when guests|if guests)\s(?P<action>.+)$", re.I)
NO_WORRY = re.compile(r"^(?:please |so |and |but )?(?:do not|don't|never|no need to) (?:worry|fret|be (?:shy|afraid|embarrassed)) (?:about|over|if you|of|at|to)\s(?P<action>.+)$", re.I)
PROHIBIT = re.compile(r"^(?:please |so |and |but )?(?P<lead>never|do not|don't|avoid|refrain from|skip|resist|steer clear of|stop)\s(?:ever |even |simply |just )?(?P<action>.+)$", re.I)
SHOULD_NOT = re.compile(r"^.{0,60}?\b(?:should(?:n't| not| never)|must(?:n't| not| never)|ought not to|(?:are|is) not (?:supposed|expected) to|can(?:not|'t) (?:simply )?|(?:do|does) not(?: usually| normally)?|never)\s(?P<action>.+)$", re.I)
SHOULD = re.compile(r"^.{0,70}?\b(?:should|must|ought to|(?:are|is) (?:\w+ )?(?:expected|supposed|advised|asked|required|well advised) to|need(?:s)? to|ha(?:s|ve) to|had better|would do well to|do well to)\s"
                    r"(?:always |simply |therefore |instead |also |just |still |first |rather |politely |usually )*(?P<action>.+)$", re.I)
CUSTOM = re.compile(r"^(?:it is|it's) (?:\w+ )?(?:customary|usual|best|better|wise|polite|normal|standard|good manners|common|expected|safer|safest|courteous|kind|proper|respectful|enough) (?:for (?:\w+ ){1,4})?to\s(?P<action>.+)$", re.I)
HABIT = re.compile(r"^(?:.{0,30}?\b)?(?:people|guests|visitors|diners|most people|many people|colleagues|friends|most guests|most visitors|locals|travellers|passengers|the custom is to|the rule is to|the polite thing is to|the usual thing is to|"
                   r"the polite move is to|the usual way is to|the habit is to|the done thing is to|the best course is to|the safe choice is to|the right thing is to)\s"
                   r"(?:usually |normally |generally |simply |always |typically |politely |often |just |tend to |all )*(?P<action>.+)$", re.I)
TRAILING = re.compile(r"(?:,? (?:because|since|as it|as this|as that|so that|so as|which|although|though|and it|and this|and that (?:is|would)|but|for it|even if|even though|whereas|while)\b.*"
                      r"|[;:–—].*| - .*)$", re.I)
BAD_ACTION = re.compile(r"\b(?:that|this|these|those|they|so|such|do so|doing so|which|too)$|^(?:\w+ )?(?:it|them)$|^(?:that|this|it|so|do so|doing so|be|being|have|having|"
                        r"see|know|notice|feel|hear|find|think|say|tell you)\b", re.I)
LONGEST = 1000
"""Characters of a sentence; the time of the rules grows with their square, and no longer text is one sentence."""
SECOND_PERSON = ((r"\b(?:their|his|her|one's)\b", "your"), (r"\bthemselves\b|\bhimself\b|\bherself\b|\boneself\b", "yourself"))


@dataclass(frozen=True)
class Norm:
    """One thing a sentence says about an action."""

    kind: Literal["judgement", "recommendation"]
    action: str
    """A judgement's action as a gerund phrase, a recommendation's as a base-form phrase; lower case."""
    acceptable: bool
    sentence: str


def read_norms(sentence: str, without_places: Callable[[str], str] = str) -> list[Norm]:
    """The norms of one sentence, the surest first; empty if no rule fits, or if it is too long for one.

    Args:
        sentence: one English sentence.
        without_places: takes the names of places out of a sentence, so that no action contains one.
    """
    if len(sentence) > LONGEST:
        return []
    text = _tidy(sentence, without_places)
    norms: list[Norm] = []
    for clause in _clauses(text):
        for kind, action, acceptable in _read_clause(clause):
            action = _clean(action)
            if action and all(action != norm.action for norm in norms):
                norms.append(Norm(kind, action, acceptable, sentence))
            break
    return norms


def _tidy(sentence: str, without_places: Callable[[str], str]) -> str:
    text = re.sub(r"^[A-Z][\w ]{1,30}: ", "", sentence.strip().rstrip(".!").replace("’", "'"))
    text = without_places(text)
    text = re.sub(r"\s+([,;:.])", r"\1", text)
    text = re.sub(r"^[\s,;:]+", "", text)
    return " ".join(text.split())


def _clauses(text: str) -> Iterator[str]:
    """The sentence, split where a second rule of its own begins."""
    pieces = re.split(r"(?:;|\s[–—-]\s|,? and (?=(?:never|do not|don't|avoid)\b)|, but (?=(?:never|do not|don't|avoid|it is|nobody|[a-z]+ing\b|you (?:should|may|can|must)))"
                      r"|,? (?=rather than\b|instead of\b)|, so (?=\w+))\s*", text)
    for piece in pieces:
        piece = piece.strip(" ,")
        if piece and not re.match(r"(?:rather than|instead of)\b", piece, re.I):
            yield piece


def _read_clause(clause: str) -> Iterator[tuple[Literal["judgement", "recommendation"], str, bool]]:
    clause = re.sub(r"^(?:(?:in|at|on|over|during|after|before|with|among|for|when|if|as|while|once|inside|around|across|by|to|of|from|however|so|yes|no|here|indeed|generally|usually|"
                    r"instead|traditionally|still|strictly speaking|sometimes|likewise|equally|similarly)\b[^,]{0,60},\s+)+(?=\w)", "", clause, flags=re.I)
    if match := NO_WORRY.match(clause):
        yield "judgement", match["action"], True
    if match := PROHIBIT.match(clause):
        yield "judgement", match["action"], False
    if match := NOBODY.match(clause):
        yield "judgement", match["action"], True
    if match := CONSIDER.match(clause):
        polarity = _polarity(match["judgement"])
        if polarity is not None and not NEGATOR.search(match["who"]):
            yield "judgement", match["action"], polarity
    if match := CUSTOM.match(clause):
        yield "recommendation", match["action"], True
    if match := SUBJECT_IT.match(clause):
        polarity = _polarity(match["judgement"])
        if polarity is not None:
            yield "judgement", match["action"], polarity
    if _starts_action(clause):
        yield from _judged_subject(clause)
    if match := WELCOME.match(clause):
        yield "judgement", match["action"], True
    if match := SHOULD_NOT.match(clause):
        yield "judgement", match["action"], False
    if match := SHOULD.match(clause):
        yield "recommendation", match["action"], True
    first = clause.split(" ", 1)[0].lower()
    rest = re.sub(r"^(?:always|simply|just|please|politely|do|then|only|rather|feel free to)\s+", "", clause, flags=re.I)
    if is_base_verb(first) or (rest != clause and is_base_verb(rest.split(" ", 1)[0])):
        yield "recommendation", rest if not is_base_verb(first) or first == "do" else clause, True
    if match := HABIT.match(clause):
        yield "recommendation", match["action"], True


def _judged_subject(clause: str) -> Iterator[tuple[Literal["judgement", "recommendation"], str, bool]]:
    """A clause whose subject is the action: the copula that the evaluation follows closely ends it."""
    for copula in re.finditer(rf"\s{COPULA}\s", clause, re.I):
        judgement = clause[copula.end() :]
        evaluation = EVALUATION.search(judgement)
        if evaluation is None or DANGLING.search(clause[: copula.start()]):
            continue
        between = judgement[: evaluation.start()]
        if len(between.split()) <= 6 and not re.search(rf"\b{COPULA}\b", between, re.I):
            action = re.sub(rf"^(?:to |{LEADING_SUBJECT})", "", clause[: copula.start()], flags=re.I)
            yield "judgement", action, bool(_polarity(judgement))
            return


def _starts_action(text: str) -> bool:
    text = re.sub(rf"^(?:{LEADING_SUBJECT})?", "", text.lower())
    head = re.sub(rf"^{LEADING_ADVERB}", "", text).split(" ", 1)[0]
    return is_gerund(head) or (text.startswith("to ") and is_base_verb(head))


def _polarity(text: str) -> bool | None:
    """Whether an evaluation approves; `None` if it says nothing clear. A negation in front turns it round."""
    match = EVALUATION.search(text)
    if match is None:
        return None
    positive = match["positive"] is not None
    before = text[: match.start()]
    if NEGATOR.search(before) or (re.match(r"no\b", match.group(), re.I) and not positive):
        positive = not positive
    return positive


def _clean(action: str) -> str:
    """Lower-case action phrase in the second person, without reasons; empty if it cannot stand alone."""
    action = TRAILING.sub("", action).strip(" ,.")
    action = re.sub(r"^(?:(?:simply|always|also|just|still|even|actually|then)\s+)+", "", action, flags=re.I)
    for pattern, replacement in SECOND_PERSON:
        action = re.sub(pattern, replacement, action, flags=re.I)
    action = " ".join(action.split())
    action = action[:1].lower() + action[1:]
    words = action.split()
    if not 2 <= len(words) <= 20 and not (len(words) == 1 and is_gerund(action)):
        return ""
    if BAD_ACTION.search(action):
        return ""
    head = re.sub(rf"^{LEADING_ADVERB}", "", action).split(" ", 1)[0]
    return action if is_gerund(head) or is_base_verb(head) else ""


def gerund_phrase(norm: Norm) -> str:
    """The norm's action as a gerund phrase: "openly contradict the boss" as "openly contradicting the boss"."""
    return _with_head(norm.action, as_gerund_phrase, lambda head: not is_gerund(head))


def base_phrase(norm: Norm) -> str:
    """The norm's action as a base-form phrase."""
    return _with_head(norm.action, as_base_phrase, is_gerund)


def _with_head(action: str, convert: Callable[[str], str], wanted: Callable[[str], bool]) -> str:
    """Apply `convert` from the verb on, past any leading adverbs, if `wanted` of the verb."""
    adverbs = re.match(rf"{LEADING_ADVERB}", action).group()
    rest = action[len(adverbs):]
    return adverbs + convert(rest) if wanted(rest.split(" ", 1)[0]) else action
