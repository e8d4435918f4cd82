// The SQL editor of `infermesh view`, as one file: see build.sh.
import { autocompletion, closeBrackets, closeBracketsKeymap, completionKeymap } from "@codemirror/autocomplete";
import { defaultKeymap, history, historyKeymap } from "@codemirror/commands";
import { sql, SQLDialect } from "@codemirror/lang-sql";
import { bracketMatching, HighlightStyle, syntaxHighlighting } from "@codemirror/language";
import { EditorState } from "@codemirror/state";
import { drawSelection, EditorView, highlightSpecialChars, keymap, lineNumbers } from "@codemirror/view";
import { tags } from "@lezer/highlight";

// Colours are the page's own, so that day and night need no second theme.
const colours = HighlightStyle.define([
  { tag: tags.keyword, color: "var(--purple)" },
  { tag: [tags.string, tags.special(tags.string)], color: "var(--green)" },
  { tag: [tags.number, tags.bool, tags.null], color: "var(--orange)" },
  { tag: [tags.typeName, tags.standard(tags.name)], color: "var(--teal)" },
  { tag: [tags.lineComment, tags.blockComment], color: "var(--muted)" },
]);
const theme = EditorView.theme({
  "&": { fontSize: ".9rem", backgroundColor: "var(--paper)", color: "var(--ink)" },
  ".cm-content": { fontFamily: "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace", minHeight: "8rem", caretColor: "var(--ink)" },
  ".cm-gutters": { backgroundColor: "var(--raised)", color: "var(--muted)", border: "0" },
  ".cm-scroller": { maxHeight: "24rem", overflow: "auto" },
  ".cm-cursor": { borderLeftColor: "var(--ink)" },
  "&.cm-focused .cm-selectionBackground, .cm-selectionBackground": { backgroundColor: "var(--grid) !important" },
  ".cm-tooltip": { backgroundColor: "var(--raised)", color: "var(--ink)", border: "1px solid var(--grid)" },
  ".cm-tooltip-autocomplete ul li[aria-selected]": { backgroundColor: "var(--blue)", color: "var(--paper)" },
});

/** An editor in `parent`. `dialect`: {keywords, builtin, types}; `schema`: table → columns; `run`: called at Ctrl+Enter. */
export const create = ({ parent, text, nonce, label, dialect, schema, table, run, changed }) =>
  new EditorView({
    parent,
    state: EditorState.create({
      doc: text,
      extensions: [
        EditorView.cspNonce.of(nonce),
        keymap.of([{ key: "Mod-Enter", run: () => (run(), true) }]),
        lineNumbers(), history(), drawSelection(), bracketMatching(), closeBrackets(), autocompletion({ icons: false }),
        highlightSpecialChars(), syntaxHighlighting(colours), theme, EditorView.lineWrapping,
        sql({ dialect: SQLDialect.define({ ...dialect, doubleDollarQuotedStrings: true }), schema, defaultTable: table }),
        // Tab leaves the editor, as it leaves any field: nobody is caught in it.
        keymap.of([...closeBracketsKeymap, ...completionKeymap, ...historyKeymap, ...defaultKeymap]),
        EditorView.contentAttributes.of({ "aria-label": label }),
        // Where a selection is typed over, the browser would keep its colours as style attributes, which the page forbids.
        EditorView.domEventHandlers({
          beforeinput: (event, view) => {
            if (event.inputType !== "insertText" || event.data === null || view.state.selection.main.empty) return false;
            event.preventDefault();
            view.dispatch(view.state.replaceSelection(event.data), { userEvent: "input.type", scrollIntoView: true });
            return true;
          },
        }),
        EditorView.updateListener.of((update) => update.docChanged && changed()),
      ],
    }),
  });
