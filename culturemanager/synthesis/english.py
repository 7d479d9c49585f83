"""The little English that the extractive generator needs: verbs, their base forms and gerunds."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

VERBS = frozenset("""
accept accompany acknowledge add address adjust admire admit adopt agree aim allow answer apologise apologize appear applaud approach argue arrange
arrive ask assume attend avert avoid await back balance bargain bathe be beckon beg begin behave bin blow boast book borrow bow bring browse brush bump
buy call carry celebrate change charge chat chatter check cheer chew chime choose circle clap clean clear clink close come comment commit compare compliment conceal
congratulate consider contact contradict converse correct cough count counter cover criticise criticize cross cut dance debate decide decline defer delay deliver
deny depart dine dip disagree discuss dispose divide divulge do donate drain draw dress drill drink drive drop eat embrace empty enquire enter exchange excuse expect
explain express extend face fan feed feel fetch fill finish flash flush flip flirt fold follow forget fork gaze gesture get give glance go grab greet grip grow guess
haggle hail hand handle hang hesitate hide hit hold honk honour honor hope host hug hum hurry ignore indicate inquire insist interrupt introduce invite
join joke jump keep kick kiss kneel knock knot lay lead lean learn leave lend let lick lie lift light limit line linger link listen litter lock look lower
make mark meet mention mind mix mow move nap negotiate nod note nudge object observe offer open order overstay pack park pass pat pause pay peel
phone photograph pick pinch place plan play point polish pop pour praise pray prepare present press pretend prop propose protest pull push put query question
queue quit raise reach read receive reciprocate recline refer refill refrain refuse reject remain remember remove repay repeat reply request reschedule reserve
respect respond rest return reveal ring rinse rise roll round rub run rush salute save say scold scratch seal seat seek select sell send serve set settle shake
share shave shed shout show shrug shut sidestep sign signal sing sip sit skip slap slip slouch slurp smell smile smoke sneeze sniff sniffle snap soak socialise socialize
speak spell spend spit split spoon spread stack stand stare start state stay step stick stir stop straighten stretch stride stroll sub suggest sulk swap sway
swear switch take talk tap taste teach tear tell text thank throw tidy tie tilt tip toast toss touch trade travel treat try tuck turn twist type unwrap use
utter visit volunteer voice wait wake walk wander warn wash watch wave wear weigh welcome whisper whistle wink wipe wish wolf work worry wrap write yawn yell zip
breathe bite crowd disturb embarrass enjoy ensure examine flaunt fumble gulp haul hush imitate invade jaywalk lecture lounge march mock munch near offend outbid
overtake pester point postpone press probe pry recite regift rev rummage seize separate shove slam snatch snub sprawl squeeze squirt strike stroke strut subtract
swallow swig tease thumb top tour trim trust unfold upset vacuum vary venture wade steer rave gush stop form fall lower ring drum tear crane kneel shuffle loosen scrape spare spoil soften strip stoop shelve sample
""".split())

IRREGULAR_GERUNDS = {"be": "being", "lie": "lying", "die": "dying", "tie": "tying", "see": "seeing", "agree": "agreeing", "disagree": "disagreeing"}
DOUBLED = frozenset("put get sit cut let run set stop drop tip slip nod hug swap pop hit shut chat pat rub grab wrap unwrap sip top beg clap plan skip step snap "
                    "split spit quit begin refer defer dip trim tap nap zip bin hum fan knot prop chat forget flip flirt admit commit shrug trot stir slam snub "
                    "shed sub strut pin outbid pet prefer swig rev pin hop".split()) - {"flirt"}


def gerund(verb: str) -> str:
    """The -ing form of a verb's base form."""
    if verb in IRREGULAR_GERUNDS:
        return IRREGULAR_GERUNDS[verb]
    if verb in DOUBLED:
        return f"{verb}{verb[-1]}ing"
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        return f"{verb[:-1]}ing"
    return f"{verb}ing"


@functools.cache
def _base_by_gerund() -> dict[str, str]:
    return {gerund(verb): verb for verb in VERBS}


def is_base_verb(word: str) -> bool:
    """Whether a word is the base form of a verb that etiquette pages use."""
    return word.lower() in VERBS


def is_gerund(word: str) -> bool:
    """Whether a word is such a verb's -ing form."""
    return word.lower() in _base_by_gerund()


def as_gerund_phrase(verb_phrase: str) -> str:
    """ "take off your shoes and leave them" as "taking off your shoes and leaving them"."""
    head, _, rest = verb_phrase.partition(" ")
    return f"{gerund(head.lower())} {_coordinated(rest, is_base_verb, gerund)}".strip()


def as_base_phrase(gerund_phrase: str) -> str:
    """ "keeping your shoes on" as "keep your shoes on"."""
    head, _, rest = gerund_phrase.partition(" ")
    return f"{_base_by_gerund()[head.lower()]} {_coordinated(rest, is_gerund, lambda word: _base_by_gerund()[word])}".strip()


def _coordinated(rest: str, is_verb: Callable[[str], bool], convert: Callable[[str], str]) -> str:
    """Convert the verbs that an "and" joins to the first."""
    return re.sub(r"\b(and|or) ([a-z]+)(?= (?:your|the|a|an|it|them|to|in|on|off|at|with|up|down|out|away|by|for|that|everyone|everybody)\b)",
                  lambda match: f"{match[1]} {convert(match[2])}" if is_verb(match[2]) else match.group(), rest)
