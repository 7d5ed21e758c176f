"""What a base model must be before post-training is worth studying on it.

The gates say that post-training has something to do and something to work with: the model is
right sometimes and not usually, its samples differ in what a preference or a rubric looks at, it
can use the forms of an answer, and it follows a demonstration. They are measured on held-out items,
asked in the form that the model was pretrained on. `python -m tools.gates models/base` measures
and writes the model card.

A gate that is not met stays a gate: the card shows it as "not met", with the reason that
`reasons.json` beside the model gives. Without a reason no card is written.
"""
