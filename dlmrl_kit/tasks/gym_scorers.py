"""What is known of reasoning-gym's scorers: which data sets are refused, and which pay more than right answers.

All of it is of reasoning-gym 0.1.25, by a search over every data set: 50 examples with the default configuration, and
constants, NaN words, the prompt itself, other examples' answers, empty and very long texts as completions. The tests
repeat the search.
"""

from __future__ import annotations

EVALUATES_TEXT = frozenset(
    {
        "binary_matrix",  # eval(answer)
        "bitwise_arithmetic",  # eval of the entry's text; the answer goes to int()
        "composite",  # calls the scorers of other datasets; use Mixture
        "countdown",  # sympy.parse_expr(answer), which is eval; use Countdown
        "intermediate_integration",  # sympy.parse_expr(answer)
        "n_queens",  # eval(answer)
        "number_sorting",  # eval of the entry's solution where it is no JSON
        "polynomial_multiplication",  # sympy.parse_expr(answer)
        "puzzle24",  # sympy.parse_expr(answer)
        "simple_integration",  # sympy.parse_expr(answer)
        "spiral_matrix",  # eval(answer)
        "string_insertion",  # eval(answer)
    }
)
"""Data sets whose ``score_answer`` can reach ``eval``, ``exec`` or sympy's parser.

They are refused whether the text is the model's or the dataset's: a rule without exceptions can be checked by a
program, and the tests do so on the installed sources.
"""

MARGIN = 0.15
"""A constant pays if its mean score, or its share of full marks, exceeds the share of the most frequent answer by more.

What a constant that is the right answer to some examples earns is no fault of the scorer.
"""

PAYS_CONSTANTS = {
    "coin_flip": "full marks for '0', with which every probability begins",
    "complex_arithmetic": "full marks for 'nan', also with white space inside",
    "graph_color": "full marks for one colouring in a quarter of the examples, as many colourings are right",
    "game_of_life_halting": "full marks for every text that is not empty",
    "propositional_logic": "full marks for one formula in three of four examples, as it asks for no particular one",
}
"""Data sets whose scorer gives full marks to a constant, and what it gives them for. They are refused."""

FULL_MARKS_ONLY = {
    "game_of_life": "an empty board gets 0.96 of a mark, for most cells of most boards are dead",
    "mini_sudoku": "any solved board gets 0.27",
    "rectangle_count": "'5' gets 0.45, for it is never far off",
    "time_intervals": "one duration gets 0.44, for it is never far off",
}
"""Data sets whose partial marks pay a constant, and what they pay. Only full marks count there."""

ACCEPTS_MORE = {
    "fraction_simplification": "text after the answer",
    "gsm_symbolic": "text after the first number",
    "kakurasu": "characters other than 0 and 1",
    "knights_knaves": "text around the answer",
    "letter_jumble": "words after the answer",
    "quantum_lock": "letters other than the buttons' names",
    "sokoban": "characters other than the moves, and moves after the last one that is needed",
    "spell_backward": "letters after the answer, for some words",
    "survo": "words between the numbers",
    "time_intervals": "text after a number of days",
}
"""Data sets whose scorer gives full marks to the answer with something else, and with what."""
