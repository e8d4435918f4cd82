#!/bin/sh
# Makes infermesh/pages/assets/editor.min.js, the SQL editor of `infermesh view`, and fetches jsdiff: for maintainers who
# renew them. It needs npm. Afterwards put the new hashes into tests/pages/test_page.py and look at the SQL page.
set -eu
cd "$(dirname "$0")"
assets=../../infermesh/pages/assets
npm ci --ignore-scripts --no-fund --no-audit
node node_modules/esbuild/bin/esbuild editor.js --bundle --minify --format=iife --global-name=infermeshEditor \
  --target=es2022 --legal-comments=none --outfile=$assets/editor.min.js
{
  for package in @codemirror/autocomplete @codemirror/commands @codemirror/lang-sql @codemirror/language \
    @codemirror/state @codemirror/view @lezer/common @lezer/highlight @lezer/lr crelt style-mod w3c-keyname \
    @marijn/find-cluster-break; do
    echo "== $package"
    cat node_modules/$package/LICENSE
    echo
  done
} > $assets/editor.LICENSE
cp node_modules/diff/dist/diff.min.js $assets/diff.min.js
cp node_modules/diff/LICENSE $assets/diff.LICENSE
rm -r node_modules
sha256sum $assets/editor.min.js $assets/diff.min.js
