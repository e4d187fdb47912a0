"""What number an answer states: one, by one rule, or none with a reason."""

from __future__ import annotations

import re
import time
from fractions import Fraction as F

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl_lab.tasks.real.answers import NotAnAnswer
from flowrl_lab.tasks.real.math_checking import read_number, read_value, same_value
from flowrl_lab.tasks.real.word_problems import AnswerTask, Problem


def forms(table: str) -> list[str]:
    """The forms of a table, which stand between broken bars."""
    return [form.strip() for form in re.split(r"[¦\n]", table) if form.strip()]


EIGHTEEN = forms(r"""
    18 ¦ 18. ¦ **18** ¦ *18* ¦ ***18*** ¦ __18__ ¦ _18_ ¦ `18` ¦ {18} ¦ "18" ¦ '18'
    \(18\) ¦ \[ 18 \] ¦ $18$ ¦ $$18$$ ¦ \text{18} ¦ \textbf{18} ¦ \mathbf{18} ¦ **18.**
    \mathrm{18} ¦ \mathit{18} ¦ \mbox{18} ¦ \boxed{18} ¦ \fbox{18} ¦ \boxed{\mathbf{18}}
    $\boxed{18}$ ¦ **$\boxed{\text{18}}$**. ¦ \underline{18} ¦ \displaystyle 18
    {\bf 18} ¦ \boxed {18} ¦ \(\mathbf{18}\) ¦ 18.. ¦ 18.0 ¦ \bm{18}

    Answer: 18 ¦ answer = 18 ¦ The answer is 18 ¦ The final answer is: 18. ¦ x = 18
    $x = 18$ ¦ x = \boxed{18} ¦ = 18 ¦ **Answer:** 18 ¦ **Answer: 18** ¦ Answer: **18**
    Total: $18 ¦ Result: 18 apples ¦ x=18 ¦ Total cost = $18 ¦ area = 18 ¦ x_1 = 18
    \alpha = 18 ¦ x_{12} = 18 ¦ #### 18 ¦ So the answer is 18 ¦ Lösung: 18 ¦ AB = 18
    **Answer**: 18 ¦ **Total**: $18 ¦ *Answer*: **18** ¦ __Answer__: 18 ¦ **x** = 18
    The answer is **18**. ¦ The answer is *18* ¦ The total is **18 apples**
    Answer:**18** ¦ Answer: __18__ ¦ **Total cost:** **18** apples ¦ _Answer:_ 18 ¦ “18”
    ‘18’ ¦ „18“ ¦ \pmb{18} ¦ \textsc{18} ¦ ```18``` ¦ Answer: “18 apples”

    \boxed{18}\% ¦ \boxed{18} apples ¦ $18$ apples ¦ **18** apples ¦ $\boxed{18}$ km/h
    \boxed{18}\text{ apples} ¦ *18* % ¦ "18" dollars ¦ \(18\) \text{cm}
    18 Äpfel ¦ 18 élèves ¦ 18 Stück ¦ 18 ¢ ¦ 18 percent off ¦ 18 pieces of mail

    $18 ¦ 18$ ¦ \$18 ¦ $ 18 ¦ €18 ¦ 18 € ¦ USD 18 ¦ 18 USD ¦ 18 dollars ¦ $18 per hour
    $18/hour ¦ $18 in all ¦ 18 red apples. ¦ 18 km ¦ 18km ¦ 18 km/h ¦ 18 miles per hour
    18 cm^2 ¦ 18 cm² ¦ 18\text{ cm}^2 ¦ 18 \text{ apples} ¦ 18\,\mathrm{km} ¦ 18 a day
    18 square feet ¦ 18 more apples ¦ 18 cups of flour ¦ 18 g ¦ 18° ¦ 18^\circ ¦ 18 °F
    18 \mathrm{~cm} ¦ $18\mathrm{~cm}^{2}$ ¦ 18 \text{~km/h}
    18^{\circ}C ¦ 18% ¦ 18\% ¦ 18 % ¦ 18 percent ¦ 18 per cent ¦ 18 pct

    9*2 ¦ 9 \times 2 ¦ 9\cdot 2 ¦ 9×2 ¦ 36÷2 ¦ (18) ¦ \left(18\right) ¦ 2(4+5) ¦ --18
    \frac{36}{2} ¦ 1.8 \times 10^1 ¦ 18^{1} ¦ −(−18) ¦ +18 ¦ 0018 ¦ 36/2 ¦ 3\sqrt{36}
    \frac{36}2 ¦ \cfrac{36}{2} ¦ 36⁄2 ¦ √324 ¦ 9\sqrt4 ¦ 9\sqrt 4 ¦ 180·10⁻¹ ¦ 9√4 ¦ 18¹
""")
OTHERS = {
    form: F(value)
    for value, table in {
        "1250": r"1,250 ¦ 1{,}250 ¦ 1\,250 ¦ 1250.0 ¦ 1'250 ¦ 1’250",
        "2501/2": "1250.50 ¦ 1,250.50",
        "2500": "1,250*2",
        "1/2": r".5 ¦ 0.5 ¦ 1/2 ¦ \sqrt{\frac{1}{4}} ¦ \frac12 ¦ \tfrac{1}{2} ¦ 1 half",
        "3/4": r"3/4 ¦ \frac{3}{4} ¦ \dfrac{3}{4} ¦ \frac34 ¦ 3/4 cup ¦ 3 quarters"
        r"¦ \frac{3}{4} cup ¦ 1.5/2 ¦ 0.75 ¦ 3 fourths ¦ ¾ ¦ ¾ cup ¦ \frac3{4}",
        "36": "18/½ ¦ 18 pairs ¦ 18 couple ¦ 18 double ¦ 18 twice ¦ 18 pairs of shoes",
        "9/16": "¾² ¦ (¾)²",
        "3/2": r"1 1/2 ¦ 1\frac{1}{2} ¦ 1.5 ¦ 1½ ¦ 1 ½ hours",
        "-3/2": r"-1 1/2 hours ¦ -1\frac{1}{2} ¦ −1.5",
        "11/2": "11/2",
        "-13/4": "-$3.25 ¦ $-3.25 ¦ −$3.25",
        "-18": "−18 ¦ - 18 ¦ -18 ¦ -(18) ¦ –18 ¦ $–18 ¦ x = –18 ¦ －18",
        "5/4": "1.250",  # a point stands before decimals, whoever writes
        "18000": "18 thousand ¦ 18k ¦ $18K ¦ 18 grand ¦ 18 Thousand",
        "1800": "18 hundred ¦ 18 hundreds",
        "216": "18 dozen ¦ 18 dozens ¦ 18 dozen red eggs",
        "9": r"18 half ¦ 18 halves ¦ \sqrt{81}",
        "54": "18 triple ¦ 18 thrice",
        "360": "18 score",
        "2592": "18 gross",
        "180": "18 tens",
        "9/5": "18 tenths ¦ 1.8",
        "9/8": "18 sixteenths",
        "9/50": "18 hundredths",
        "5000000": "5 million ¦ $5M ¦ $5 million dollars ¦ 5 mn",
        "2500000": "2.5 million",
        "200000": "2 hundred thousand ¦ 2 lakh",
        "5000000000": "5 bn ¦ 5 Billion ¦ 5B",
        "-1": "18-19",
        "18/19": "18/19",
        "1": r"\frac{1+2}{3} ¦ \frac{1}{2}+\frac{1}{2}",
        "1024": "2^{10} ¦ 2**10 ¦ 2^10",
        "1/10": "10^{-1}",
        "4": r"\sqrt{16} ¦ sqrt(16) ¦ \sqrt{4}^2",
        "-4": "-2^2",
    }.items()
    for form in forms(table)
}
STATED = dict.fromkeys([*EIGHTEEN, " 18 ", "18\napples"], F(18)) | OTHERS
STATED |= {f"18{space}190{space}000": F(18_190_000) for space in "\u00a0\u2009\u202f"}


@pytest.mark.parametrize(("text", "value"), STATED.items())
def test_one_number_is_read_in_whatever_wrapper(text, value):
    assert read_value(text) == value
    assert same_value(str(value), text) == (True, "right")
    assert same_value(str(value + 1), text) == (False, "another number")


TWO = ["18|19", "18 | 19", "18\n19"]
TWO += forms(r"""
    18_19 ¦ 18?19 ¦ 18&19 ¦ 18 & 19 ¦ 18#19 ¦ 18@19 ¦ 18[19 ¦ 18(19 ¦ 18]19 ¦ 18...19
    18 . 19 ¦ 18//19 ¦ \boxed{18},\boxed{19} ¦ \boxed{18} \boxed{19} ¦ \boxed{18}19
    18\boxed{19} ¦ 17 \boxed{18} ¦ $18$ $19$ ¦ $18$19$ ¦ 18$19 ¦ 18 $ 19 ¦ 18},{19
    18\right 19 ¦ 18, 19 ¦ 18,19 ¦ 18 19 ¦ {18,19} ¦ (18,19) ¦ [18, 19] ¦ 18 or 19
    18; 19 ¦ 18 and 19 ¦ 18 to 19 ¦ between 18 and 19 ¦ 18 \pm 1 ¦ 18 ± 1 ¦ ±18 ¦ 18–19
    18 = 18 ¦ 9*2=18 ¦ 18=19 ¦ 17<18 ¦ <18 ¦ 18:19 ¦ 18, 18 ¦ **18** **19** ¦ *18* *19*
    "18" "19" ¦ `18` `19` ¦ \text{18}\text{19} ¦ \mathbf{18}{19} ¦ {18}{19} ¦ 18 {19}
    \(18\) \(19\) ¦ \[18\]\[19\] ¦ 18 apples 19 pears ¦ 18 apples, 19 pears ¦ 18 of 19
    18 out of 20 ¦ x = 18 or x = 19 ¦ x=18, y=19 ¦ Answer: 18 Answer: 19 ¦ 18 Answer: 19
    18%19 ¦ 18 % 19 ¦ 18 km 19 ¦ 18 nineteen ¦ 18 twenty ¦ 18 19/1 ¦ 18\frac{19}{1}
    nineteen = 18 ¦ half: 18 ¦ 18 = x = 19 ¦ \boxed{18} 19 apples ¦ "18" or "19"
    **18** or nineteen ¦ 18 XIX 19 ¦ 18 – 19 ¦ 18‑or‑19 ¦ 1'2 ¦ 18'19 ¦ 18 ½ 19
    18 neunzehn ¦ 18 zwanzig ¦ 18 vingt ¦ 18 oder neunzehn ¦ 18 dix ¦ 18 cinquenta 1
    “18” or “19” ¦ ‘18’ ‘19’ ¦ **18**: 19 ¦ **Answer**: 18 **Answer**: 19
    ```18``` `19`
    18 dollars and 5 cents ¦ 18~19 ¦ 18\quad 19 ¦ 18\\19 ¦ 18 e 19 ¦ 18 Or 19 ¦ 18/19/x
""")
NONE = ["", " ", "18\u200b", "9" * 13]
NONE += forms(r"""
    . ¦ - ¦ $ ¦ % ¦ apples ¦ eighteen ¦ none ¦ nan ¦ inf ¦ [18] ¦ ~18 ¦ ≈18 ¦ about 18
    18 or so ¦ 18ish ¦ 18 ish ¦ negative 18 ¦ minus 18 ¦ 18 below zero ¦ 18 less
    18 and a half ¦ 18 point five ¦ 18 plus one ¦ 18 squared ¦ 18 cubed ¦ 18 factorial
    18! ¦ 18 hex ¦ 18 kilo ¦ 18 mil ¦ 18 x ¦ 18x ¦ 18i ¦ 18e3 ¦ 1e3 ¦ 1E3 ¦ 0x12 ¦ 18th
    18 m ¦ 18m ¦ 18 T ¦ 18 th ¦ 1_000 ¦ 1,25 ¦ 1,2500 ¦ 12,34 ¦ 1.2.3 ¦ 1/0 ¦ 1/(2-2)
    3,5 ¦ 1.250,50 ¦ 12,50 € ¦ 1.250.000 ¦ 1 250 ¦ 18 Millionen ¦ 18 Mrd. ¦ 18 douzaines
    18 millones ¦ 18 miljoen ¦ 18 quadrillion ¦ 18 zillion ¦ 18 thousandfold ¦ 18 doz
    18 et demi ¦ 18 ein halb ¦ 18 einhalb ¦ 18 und ein halb ¦ 18 medio ¦ 18 octuple
    18 thirtieths ¦ 18 nineteenths ¦ 18 trn ¦ 18 tausend ¦ 18 Hunderttausend ¦ 18 mln
    18 dreifach ¦ 18 Drittel ¦ 18 dollars a quarter ¦ 18 out of a million ¦ {2+3}\pi 1
    \frac{36}12 ¦ \sum_{i=1}^{18}1 ¦ \pi = 18 ¦ not x = 18 ¦ less than: 18 ¦ ½½ ¦ 18½½
    18 per dozen ¦ 18- ¦ 18* ¦ 18^ ¦ (18 ¦ 18) ¦ \frac{1}{ ¦ \frac{}{} ¦ \input{x}
    \sqrt[3]{8} ¦ \sqrt16 ¦ \sqrt{-1} ¦ ٤٢ ¦ ４２ ¦ 18 个 ¦ __import__('os')
    18 red green blue white black grey ¦ 18 halved ¦ 18 doubled ¦ 18 tripled ¦ 18 nope
    18 is too small ¦ 18 unlikely ¦ 18 googols ¦ √½ ¦ 9^½ ¦ ⅟18 ¦ **half**: 18 ¦ {~18}
    **Answer**: ¦ ** ** 18 ¦ “18 ¦ 18” ¦ {~}18
""")


@pytest.mark.parametrize("text", [*TWO, *NONE])
def test_anything_else_is_refused_with_a_reason(text):
    with pytest.raises(NotAnAnswer) as refused:
        read_value(text)
    assert str(refused.value)
    for known in ("17", "18", "19"):
        with pytest.raises(NotAnAnswer):
            same_value(known, text)


def test_percent_is_a_unit_and_nothing_else():
    assert same_value("18", "18%")[0]
    assert same_value("18%", "18")[0]
    assert not same_value("0.18", "18%")[0]
    assert not same_value("18", "1800%")[0]
    assert not same_value("18", "0.18")[0]


def test_a_part_of_a_scaled_number_is_not_the_number():
    for text, value in STATED.items():
        if value != 18:
            assert not same_value("18", text)[0], text
        if value != 5:
            assert not same_value("5", text)[0], text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("18 or 19", "words beside the answer"),
        ("18 squared", "words beside the answer: 'squared'"),
        (r"\input{x}1", "words beside the answer"),
        ("17<18", "more than one value"),
        (r"\frac{}{}", "no number"),
        ("10**10**10", "too large to work out"),
        ("10^{10^{10}}", "too large to work out"),
        ("2^100", "too large to work out"),
        ("2^{10}^{10}", "too large to work out"),
        ("2^(9^9)", "too large to work out"),
        ("2^9!", "too large to work out"),
        ("((2^{99})^{99})^{99}", "too large to work out"),
        (r"(\pi^{99})^{99}", "too large to work out"),
        ("1/0", "division by zero"),
        (r"1/(\sqrt{2}-\sqrt{2})", "division by zero"),
        (r"\sqrt{-1}", "the root of a negative number"),
        (r"\sqrt{2}" * 5, "more than 4 roots"),
        ("9" * 13, "more than 12 digits"),
        ("18 per dozen", "per dozen"),
        ("1" * 201, "longer than 200 characters"),
        ("４２", "other than plain ASCII"),
    ],
)
def test_the_reason_names_what_is_wrong(text, reason):
    with pytest.raises(NotAnAnswer, match=reason.replace("(", r"\(")):
        read_value(text)


@pytest.mark.parametrize(
    ("known", "given", "same"),
    [
        (r"4\sqrt{2}", r"\sqrt{32}", True),
        (r"4\sqrt{2}", r"4\sqrt(2)", True),
        (r"4\sqrt{2}", r"\frac{8}{\sqrt{2}}", True),
        (r"4\sqrt{2}", "5.65685424949", False),
        ("4", r"4\sqrt(2)", False),
        ("2", r"\sqrt{2}\sqrt{2}", True),
        (r"2\pi", r"\pi \cdot 2", True),
        (r"2\pi", "2π", True),
        (r"\frac{\pi}{4}", r"\pi/4", True),
        (r"2\pi", "6.28318", False),
        (r"-\sqrt{2}", r"-(\sqrt{2})", True),
        (r"3+2\sqrt{2}", r"(1+\sqrt{2})^2", True),
        ("18", r"18+(\sqrt{2})^{-99}", False),
        # A known answer that is no number counts as it is written.
        ("(3, 4)", "(3,4)", True),
        ("(3, 4)", r"\boxed{(3,4)}", True),
        ("(3, 4)", "(4,3)", False),
        ("B", "**B**", True),
    ],
)
def test_roots_pi_and_what_is_no_number(known, given, same):
    assert same_value(known, given)[0] is same


BOMBS = [
    *(mark * count for mark in "({[$*_`\"'\\^-=.,/" for count in (50, 199, 10_000)),
    *("(" * n + "1" + ")" * n for n in (10, 19, 25, 99)),
    *("{" * n + "1" + "}" * n for n in (25, 99, 5_000)),
    *(f"\\{name}{{" * 28 + "1" + "}" * 28 for name in ("text", "boxed", "sqrt")),
    *(word * 99 + "1" for word in ("x=", "1/", "-", "1,", "{}", "(", "a ", "/a ")),
    *("18" + word * 25 for word in (" hundred", " a", "/a", "k", " per")),
    *forms(r"""
    \sqrt{\sqrt{\sqrt{\sqrt{2}}}} ¦ (\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7})^{99}
    (2^{99})^{40} ¦ ((2^{99})^{40})^{99} ¦ 9**9**9**9 ¦ ((\pi+1)^{99}+1)^{99}
    (999999999999^{99}+1)/(999999999989^{99}+7)*(999999999999^{99}+1)
    """),
    *(r"\frac{" * 30 + "1", r"\frac{1}{" * 20 + "1" + "}" * 20, "answer: " * 25),
    *("2^{99}" * 30, "2^" * 90 + "2", r"\pi^{99}" * 20, r"\pi*" * 40 + "1"),
    *("1 " * 100, "1,000" * 40, r"\," * 100, "{,}" * 66, r"\left(" * 30 + "1"),
]


def test_bombs_cost_at_most_fifty_milliseconds():
    for text in BOMBS:
        best = 1.0
        for _ in range(3):  # the fastest of three: other work may hold the machine
            start = time.process_time()
            try:
                same_value("18", text)
            except NotAnAnswer as refused:
                assert len(str(refused)) < 200
            best = min(best, time.process_time() - start)
        assert best < 0.05, text[:60]


WORDS = forms(
    r"18 ¦ 19 ¦ ** ¦ \, ¦ \left ¦ \right ¦ \boxed ¦ \text ¦ \frac ¦ \sqrt ¦ \pi ¦ or"
    "¦ half ¦ dozen ¦ apples"
)
PIECES = st.sampled_from([*"01,./*^-+(){}$%|_=!x\n²π ", *WORDS])


@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=30))
@settings(max_examples=400, deadline=None)
def test_any_text_states_one_number_or_none(text):
    number = read_number(text)
    try:
        value = read_value(text)
    except NotAnAnswer as refused:
        assert str(refused)
        assert number is None
        return
    assert number is None or number == value
    right = same_value(text, text)
    assert right == (True, "right")


def test_a_training_run_sees_the_same_rule():
    task = AnswerTask("x", [Problem("How many apples?", "18")], [])
    prompt = task.prompts("train")[0]
    right = ["**18**", r"\(18\)", "€18", "−(−18)"]
    for answer in [*right, "18 thousand", "18 | 19", "18 dozen"]:
        scored = task.score(prompt, f"So: <answer>{answer}</answer>")
        assert scored.correct is (answer in right), answer
        assert scored.reward == float(answer in right)
