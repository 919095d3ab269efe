"""Does the folded model compute the same? NumPy only; runners live in the frontends.

api         the call: which runner each model gets
runner      what a frontend provides
inputs      what the models are run on
sampler     a sample of each tensor inside of a run
compare     the distances between two outputs
verdict     what rounding explains, and why
evidence    the runs
outputs     what they say of the outputs
layers      where the two part
trust       what is not to be relied on
thorough    all of this together: the judge
result      what was found; render shows it
"""

from bnfold.verify.findings import LayerDifference, OutputDifference
from bnfold.verify.result import VerifyResult

__all__ = ["LayerDifference", "OutputDifference", "VerifyResult"]
