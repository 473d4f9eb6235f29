// Builds the page into site/, with our dashboards beside it:
//   npm install --legacy-peer-deps && node build.mjs && python3 -m http.server --directory site 8090
// and then, with a Prometheus that has the data:
//   http://127.0.0.1:8090/?board=disagg-deployment&prometheus=http://127.0.0.1:9090&var-namespace=NS&var-deployment=chat
import { cpSync, writeFileSync } from 'node:fs';
import * as esbuild from 'esbuild';

// Parts of the interface that no dashboard needs are not installed: exploring, and other pages.
const left = new Set();
const leaveOut = {
  name: 'leave-out',
  setup(build) {
    build.onResolve({ filter: /^[^./]/ }, async (asked) => {
      if (asked.pluginData === 'again') return undefined;
      const { kind, resolveDir, importer } = asked;
      const found = await build.resolve(asked.path, { kind, resolveDir, importer, pluginData: 'again' });
      if (found.errors.length === 0 && found.path.startsWith('/')) return found;
      left.add(asked.path);
      return { path: asked.path, namespace: 'left-out' };
    });
    build.onLoad({ filter: /.*/, namespace: 'left-out' }, () => ({
      contents: 'module.exports = new Proxy({}, {get: (_, key) => key === "__esModule" ? true : () => ({})})',
    }));
  },
};
await esbuild.build({
  entryPoints: ['app.jsx'], bundle: true, outfile: 'site/app.js', format: 'iife', jsx: 'automatic',
  define: { 'process.env.NODE_ENV': '"production"', global: 'window' }, plugins: [leaveOut],
  loader: { '.woff': 'dataurl', '.woff2': 'dataurl', '.svg': 'dataurl', '.png': 'dataurl' }, logLevel: 'error',
});
const parts = ['<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="app.css">',
  '<style>html,body,#root{height:100%;margin:0}</style><div id="root"></div><script src="app.js"></script>\n'];
writeFileSync('site/index.html', parts.join(''));
cpSync('../../../helm/disagg/dashboards/perses', 'site/dashboards', { recursive: true });
console.log('left out:', [...left].join(', '));
