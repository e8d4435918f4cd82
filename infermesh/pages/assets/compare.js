"use strict";
// Marks the words of two answers that differ. Without it both stand there as they are.
(() => {
  const MOST = 20000; // characters a side; longer texts are compared by lines
  const say = (side, pieces, name) => {
    side.replaceChildren(
      ...pieces.map((piece) => {
        if (!piece[name]) return document.createTextNode(piece.value);
        const mark = document.createElement(name === "added" ? "ins" : "del");
        mark.textContent = piece.value;
        return mark;
      }),
    );
  };
  for (const pair of document.querySelectorAll("[data-diff]")) {
    const [a, b] = pair.children;
    const [before, after] = [a.textContent, b.textContent];
    const by = Math.max(before.length, after.length) > MOST ? Diff.diffLines : Diff.diffWordsWithSpace;
    const pieces = by(before, after, { timeout: 500 });
    if (!pieces) continue; // it takes too long
    say(a, pieces.filter((piece) => !piece.added), "removed");
    say(b, pieces.filter((piece) => !piece.removed), "added");
  }
  document.body.dataset.compared = "yes";
})();
