import React from 'react';
import { createRoot } from 'react-dom/client';
import { ThemeProvider, CssBaseline } from '@mui/material';
import { QueryClient, QueryClientProvider } from '@tanstack/react-query';
import { QueryParamProvider } from 'use-query-params';
import { WindowHistoryAdapter } from 'use-query-params/adapters/window';
import { ChartsProvider, generateChartsTheme, getTheme, SnackbarProvider } from '@perses-dev/components';
import { PluginRegistry, dynamicImportPluginLoader } from '@perses-dev/plugin-system';
import { ViewDashboard } from '@perses-dev/dashboards';
import * as prometheus from '@perses-dev/prometheus-plugin';
import * as lines from '@perses-dev/timeseries-chart-plugin';
import * as stat from '@perses-dev/stat-chart-plugin';
import * as table from '@perses-dev/table-plugin';

const asked = new URLSearchParams(window.location.search);
const source = {
  kind: 'GlobalDatasource', metadata: { name: 'prometheus' },
  spec: { default: true, plugin: { kind: 'PrometheusDatasource', spec: { directUrl: asked.get('prometheus'), scrapeInterval: '5s' } } },
};
const datasourceApi = {
  getDatasource: () => Promise.resolve(undefined),
  getGlobalDatasource: () => Promise.resolve(source),
  listDatasources: () => Promise.resolve([]),
  listGlobalDatasources: () => Promise.resolve([source]),
};
const pluginLoader = dynamicImportPluginLoader(
  [prometheus, lines, stat, table].map((p) => ({ resource: p.getPluginModule(), importPlugin: () => Promise.resolve(p) }))
);
const theme = getTheme('light');
const charts = generateChartsTheme(theme, {});
const client = new QueryClient({ defaultOptions: { queries: { refetchOnWindowFocus: false, retry: 1 } } });
class Guard extends React.Component {
  state = {};
  static getDerivedStateFromError(error) { return { error }; }
  render() { return this.state.error ? <pre>{String(this.state.error.stack)}</pre> : this.props.children; }
}
fetch(`dashboards/${asked.get('board')}.json`).then((r) => r.json()).then((dashboard) => {
  dashboard.metadata = { version: 0, createdAt: '', updatedAt: '', ...dashboard.metadata };
  createRoot(document.getElementById('root')).render(
    <Guard><QueryParamProvider adapter={WindowHistoryAdapter}><ThemeProvider theme={theme}><CssBaseline />
      <ChartsProvider chartsTheme={charts}><SnackbarProvider anchorOrigin={{ vertical: 'bottom', horizontal: 'left' }}>
        <PluginRegistry pluginLoader={pluginLoader} defaultPluginKinds={{ Panel: 'TimeSeriesChart', TimeSeriesQuery: 'PrometheusTimeSeriesQuery' }}>
          <QueryClientProvider client={client}>
            <ViewDashboard dashboardResource={dashboard} datasourceApi={datasourceApi} isReadonly={true} isVariableEnabled={true} isDatasourceEnabled={false} />
          </QueryClientProvider></PluginRegistry></SnackbarProvider></ChartsProvider></ThemeProvider></QueryParamProvider></Guard>
  );
});
