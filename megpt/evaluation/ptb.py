"""The PTB tokenizer of COCO's evaluation (Stanford CoreNLP 3.4.1, which pycocoevalcap ships), a Java program.

pycocoevalcap's wrapper writes into its own package, waits for ever, and shifts every later text when one holds a line
end that Java knows. Here each text is one line, the locale is fixed, the time is limited, and the lines are counted.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pycocoevalcap.tokenizer import ptbtokenizer

from megpt.errors import InputError

_JAR = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
_PUNCTUATION = frozenset(ptbtokenizer.PUNCTUATIONS)
START_S, PER_TEXT_S = 120.0, 0.01


def tokenize(texts: Sequence[str], *, java: str = "java") -> list[str]:
    """Each text lower-cased, tokenized and without punctuation, as words between spaces.

    Raises:
        InputError: no Java, no answer in time, or another number of lines than texts.
    """
    if not texts:
        return []
    program = shutil.which(java)
    if program is None:
        raise _unavailable("Java is not installed (it needs Java 8 or newer)")
    options = ["-Xmx1G", "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]
    tokenizer = ["-cp", str(_JAR), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    limit = START_S + PER_TEXT_S * len(texts)
    with tempfile.TemporaryDirectory(prefix="megpt-ptb-") as folder:
        source = Path(folder) / "texts"
        # split() knows every line end that Java does
        source.write_text("".join(" ".join(text.split()) + "\n" for text in texts), "utf-8", errors="replace")
        try:
            command = [program, *options, *tokenizer, str(source)]
            done = subprocess.run(command, capture_output=True, timeout=limit, check=False, cwd=folder)
        except subprocess.TimeoutExpired:
            raise _unavailable(f"its program gave no answer within {limit:.0f} s") from None
        except OSError as error:
            raise _unavailable(f"Java cannot be started ({type(error).__name__})") from None
    lines = done.stdout.decode("utf-8", errors="replace").split("\n")
    if done.returncode or len(lines) != len(texts) + 1 or lines[-1]:
        raise _unavailable(f"its program ended with code {done.returncode} and {len(lines) - 1} answers")
    return [" ".join(w for w in line.rstrip().split(" ") if w and w not in _PUNCTUATION) for line in lines[:-1]]


def _unavailable(cause: str) -> InputError:
    return InputError("the PTB tokenizer cannot be used", cause=cause, next="install Java, or use another data.cleaner")
